"""A process whose Hugging Face Hub is a server on this machine: `huggingface_hub` reads the address when it is imported.

A test that is marked `@at_hub` runs in there; `fakehub` holds what was asked and what is stored.
"""

import functools
import os
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

import fakehub

hub: fakehub.Hub


def open_hub(root):
    global hub
    _, hub, address = fakehub.start(f"{root}/hub")
    os.environ.update(HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1", HF_TOKEN="hf_secret", HF_HOME=f"{root}/home")
    os.environ.pop("HF_HUB_OFFLINE", None)


def at_hub(test):
    @functools.wraps(test)
    def there(**fixtures):
        said = _process().submit(_run, test.__module__, test.__name__, fixtures).result()
        assert said is None, said

    return there


@functools.cache
def _process():
    folder = tempfile.TemporaryDirectory()
    pool = ProcessPoolExecutor(1, get_context("spawn"), open_hub, (folder.name,))
    pool.folder = folder  # until the pool is gone
    return pool


def _run(module, name, fixtures):
    hub.fail = None
    hub.log.clear()
    try:
        getattr(import_module(module), name).__wrapped__(**fixtures)
    except Exception:  # as text: not every error survives the way home
        return traceback.format_exc()
