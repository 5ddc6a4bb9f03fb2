"""Skeletons: the connections of streams. One file each."""

from anyformer.skeletons.actor import Actor
from anyformer.skeletons.autoencoder import Autoencoder
from anyformer.skeletons.base import Output, Skeleton
from anyformer.skeletons.clips import Sounds, Videos, Views
from anyformer.skeletons.codec import Codec
from anyformer.skeletons.composer import Composer
from anyformer.skeletons.cross_encoder import CrossEncoder
from anyformer.skeletons.decoder import CausalLM
from anyformer.skeletons.denoiser import Denoiser
from anyformer.skeletons.drawer import Drawer
from anyformer.skeletons.dual_tower import DualTower
from anyformer.skeletons.encoder import Encoder, GlobalEncoder
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.interleaved import Images, Interleaved
from anyformer.skeletons.media import Medium
from anyformer.skeletons.painter import Painter
from anyformer.skeletons.pyramid import Pyramid
from anyformer.skeletons.query_decoder import QueryDecoder
from anyformer.skeletons.reversible import ReversibleEncoder, ReversibleLM
from anyformer.skeletons.spliced import Spliced, add_media, with_media
from anyformer.skeletons.stack import Blocks, Stack
from anyformer.skeletons.staged import StagedLM

__all__ = [
    "Actor", "Autoencoder", "Blocks", "CausalLM", "Codec", "Composer", "CrossEncoder", "Denoiser", "Drawer",
    "DualTower", "Encoder", "EncoderDecoder", "GlobalEncoder", "Images", "Interleaved", "Medium", "Output", "Painter",
    "Pyramid", "QueryDecoder", "ReversibleEncoder", "ReversibleLM", "Skeleton", "Sounds", "Spliced", "Stack",
    "StagedLM", "Videos", "Views", "add_media", "with_media",
]  # fmt: skip
