"""Engines behind one seam. Importing this room is light: an engine's own library loads when it is first used."""

from midb.generators.base import FunctionGenerator, Generator, Sampling
from midb.generators.journal import Journal
from midb.generators.openai import OpenAIGenerator
from midb.generators.transformers import TransformersGenerator
from midb.generators.vllm import VLLMGenerator
from midb.schema import Completion

__all__ = [
    "Completion",
    "FunctionGenerator",
    "Generator",
    "Journal",
    "OpenAIGenerator",
    "Sampling",
    "TransformersGenerator",
    "VLLMGenerator",
]
