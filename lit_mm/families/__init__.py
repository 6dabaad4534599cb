"""One LightningModule per family: composes parts, adds no tensor maths."""

from lit_mm.families.decoder import Decoder
from lit_mm.families.encoder_decoder import EncoderDecoder
from lit_mm.families.xcomposer2 import XComposer2

__all__ = ["Decoder", "EncoderDecoder", "XComposer2"]
