"""Edits → adapter: a recipe and expert edits become a plain `trl.SFTTrainer`, and its folder a booster."""

from midb.train.log import plot_log
from midb.train.plan import Preview
from midb.train.recipe import LoraRecipe
from midb.train.trainer import last_checkpoint, lora_trainer, preview
from midb.train.training_set import as_training_set

__all__ = ["LoraRecipe", "Preview", "as_training_set", "last_checkpoint", "lora_trainer", "plot_log", "preview"]
