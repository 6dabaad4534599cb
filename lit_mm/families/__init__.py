"""One LightningModule per family: composes parts, adds no tensor maths."""

from lit_mm.families.decoder import Decoder
from lit_mm.families.encoder_decoder import EncoderDecoder
from lit_mm.families.llava import Llava
from lit_mm.families.llava_1_5 import Llava15
from lit_mm.families.llava_next import LlavaNext
from lit_mm.families.recombined import Recombined
from lit_mm.families.vila import Vila
from lit_mm.families.xcomposer2 import XComposer2

__all__ = ["Decoder", "EncoderDecoder", "Llava", "Llava15", "LlavaNext", "Recombined", "Vila", "XComposer2"]
