"""Families: one LightningModule each, which composes parts and adds no tensor maths."""

from lit_mm.families.blip import Blip
from lit_mm.families.blip2 import Blip2
from lit_mm.families.cogagent import CogAgent
from lit_mm.families.cogvlm import CogVLM
from lit_mm.families.decoder import Decoder
from lit_mm.families.encoder_decoder import EncoderDecoder
from lit_mm.families.fuyu import Fuyu
from lit_mm.families.instructblip import InstructBlip
from lit_mm.families.llava import Llava
from lit_mm.families.llava_1_5 import Llava15
from lit_mm.families.llava_next import LlavaNext
from lit_mm.families.llava_uhd import LlavaUHD
from lit_mm.families.mini_gemini import MiniGemini
from lit_mm.families.minigpt4 import MiniGPT4
from lit_mm.families.monkey import Monkey
from lit_mm.families.qwen_vl import QwenVL
from lit_mm.families.recombined import Recombined
from lit_mm.families.vila import Vila
from lit_mm.families.xcomposer import XComposer
from lit_mm.families.xcomposer2 import XComposer2
from lit_mm.families.xcomposer2_4khd import XComposer2HD

__all__ = [
    "Blip",
    "Blip2",
    "CogAgent",
    "CogVLM",
    "Decoder",
    "EncoderDecoder",
    "Fuyu",
    "InstructBlip",
    "Llava",
    "Llava15",
    "LlavaNext",
    "LlavaUHD",
    "MiniGPT4",
    "MiniGemini",
    "Monkey",
    "QwenVL",
    "Recombined",
    "Vila",
    "XComposer",
    "XComposer2",
    "XComposer2HD",
]
