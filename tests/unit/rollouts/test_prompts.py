"""What the model reads is part of a run: the digest of its prompts' tokens."""

from __future__ import annotations

import json

import models
from seedtune.config.config import Config
from seedtune.rollouts.prompts import digest
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import chat, examples


def task(*prompts) -> Task:
    return Task("t", examples([{"prompt": prompt} for prompt in prompts], "train"), (), ())


def test_the_digest_of_prompts_is_of_what_the_model_reads(tmp_path):
    folder = models.save_family("llama", tmp_path / "model")
    config, work = Config(model=str(folder)), task("Hi", chat("Hello"))
    found = digest(config, work)
    assert digest(config, work) == found
    assert digest(config.replace(system_prompt="Be brief."), task(chat("Hello"))) != digest(config, task(chat("Hello")))
    assert digest(config, task("H", "i")) != digest(config, task("Hi"))
    models.tokenizer(f"{models.CHAT_TEMPLATE} ").save_pretrained(folder)
    assert digest(config, work) != found
    assert digest(config, task("Hi")) == digest(config.replace(model=str(folder)), task("Hi"))
    models.tokenizer().save_pretrained(folder)
    assert digest(config, work) == found
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    assert digest(config, work) != found
