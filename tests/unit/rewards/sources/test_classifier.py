"""A local reward model: the logits that transformers gives, whatever the batch, template or length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from models import CHAT_TEMPLATE, save_family
from reward_calls import rewards
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import ClassifierSettings
from seedtune.errors import ConfigError, ModelError
from seedtune.rewards.sources import build, classifier
from seedtune.rewards.sources.classifier import Classifier

PROMPTS = ["2 + 2?", "Who wrote Hamlet, and when?", "Hi"]
COMPLETIONS = ["4", "Shakespeare, about 1600.", "x" * 200]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


def save(folder: Path, *, labels: int = 1, template: str | None = CHAT_TEMPLATE, pad: bool = True) -> str:
    """A tiny random Llama with a classification head, and a tokenizer of characters."""
    save_family("llama", folder, template=template)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    if not pad:
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    config = hf.AutoConfig.from_pretrained(folder)
    config.num_labels, config.architectures = labels, ["LlamaForSequenceClassification"]
    if labels == 3:
        config.id2label = {0: "bad", 1: "fair", 2: "good"}
        config.label2id = {"bad": 0, "fair": 1, "good": 2}
    torch.manual_seed(0)
    hf.LlamaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("reward"))


@torch.no_grad()
def alone(folder: str, text: str, limit: int = 64) -> torch.Tensor:
    """Logits of one text without padding."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = hf.AutoTokenizer.from_pretrained(folder)(text)["input_ids"][-limit:]
    return model(input_ids=torch.tensor([ids])).logits[0]


def test_a_model_with_positions_of_any_number_and_messages_without_content(tmp_path):
    save(tmp_path, template=None)
    config = hf.XLNetConfig(vocab_size=300, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=1)
    hf.XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    one = Classifier(ClassifierSettings(model=str(tmp_path)))
    chat = [*CHATS[0], {"role": "assistant", "content": None, "tool_calls": []}]
    (alone,) = one([f"{PROMPTS[0]}\n\n"], ["x"])
    assert one([chat, chat], ["x", "x" * 200])[0] == pytest.approx(alone, abs=1e-6)


def test_reward_processing_classes_are_the_reward_models_own_tokenizers(folder):
    given = [len, folder, folder]
    config = Config.create({"train_dataset": "x", "reward_funcs": build.settings_of(given)})
    own, other = hf.AutoTokenizer.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    other.chat_template = "another"

    def built(*tokenizers: Any) -> list[str]:
        rewards = build.build(config, given, build.tokenizers_of(config, list(tokenizers)))
        return [reward.name for reward in rewards]

    assert built("not read", own, None) == built(None, None, None)
    assert build.tokenizers_of(config, None) == [None] * 3
    with pytest.raises(ConfigError, match="another vocabulary or chat template than"):
        built(None, None, other)
    with pytest.raises(ConfigError, match="holds a str, not a tokenizer"):
        built(None, "name", own)
    with pytest.raises(ConfigError, match="1 reward_processing_classes for 3 reward_funcs"):
        build.tokenizers_of(config, own)


def test_it_gives_the_logit_of_prompt_and_completion_one_after_the_other(folder):
    scores = Classifier(ClassifierSettings(model=folder))(PROMPTS, COMPLETIONS, answer=[1, 2, 3])
    expected = [float(alone(folder, p + c)[0]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) == 3


def test_conversations_go_through_the_chat_template(folder):
    messages = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    scores = Classifier(ClassifierSettings(model=folder))(CHATS, messages)
    texts = [f"user: {p}\nassistant: {c}\n" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert scores == pytest.approx([float(alone(folder, text)[0]) for text in texts], abs=1e-5)


def test_without_a_template_conversations_are_text(tmp_path):
    folder = save(tmp_path, template=None)
    (score,) = Classifier(ClassifierSettings(model=folder))(CHATS[:1], COMPLETIONS[:1])
    assert score == pytest.approx(float(alone(folder, "2 + 2?\n4")[0]), abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_the_batch_changes_nothing(folder, size, monkeypatch):
    monkeypatch.setattr(classifier, "BATCH", size)
    one = Classifier(ClassifierSettings(model=folder))
    whole = one(PROMPTS * 3, COMPLETIONS * 3)
    assert whole == pytest.approx(one(PROMPTS, COMPLETIONS) * 3, abs=1e-5)
    assert one([], []) == []


def test_long_texts_lose_their_beginning(folder):
    one = Classifier(ClassifierSettings(model=folder))
    one.longest = 8
    (score,) = one(["y" * 50], ["abcdefgh"])
    assert score == pytest.approx(float(alone(folder, "abcdefgh", 8)[0]), abs=1e-5)


@pytest.mark.parametrize(("kind", "usable"), [("Roberta", 23), ("MPNet", 22), ("Bert", 24)])
def test_as_many_tokens_as_the_model_has_positions_for_are_read(kind, usable, tmp_path):
    save(tmp_path, template=None)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer), "num_labels": 1}
    config = getattr(hf, f"{kind}Config")(**sizes, **ids, max_position_embeddings=24)
    getattr(hf, f"{kind}ForSequenceClassification")(config).save_pretrained(tmp_path)
    texts = ["y" * 50, "z" * usable, "z" * (usable - 1)]
    scores = Classifier(ClassifierSettings(model=str(tmp_path)))(texts, [""] * 3)
    assert scores == pytest.approx([float(alone(str(tmp_path), text, usable)[0]) for text in texts], abs=1e-5)


def test_a_model_without_positions_reads_texts_of_any_length(tmp_path):
    save(tmp_path, template=None)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    config = hf.BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, num_labels=1)
    hf.BloomForSequenceClassification(config).save_pretrained(tmp_path)
    (score,) = Classifier(ClassifierSettings(model=str(tmp_path)))(["y" * 50], [""])
    assert score == pytest.approx(float(alone(str(tmp_path), "y" * 50)[0]), abs=1e-5)


def test_a_model_without_padding_token_scores_one_by_one(tmp_path):
    folder = save(tmp_path, pad=False)
    one = Classifier(ClassifierSettings(model=folder))
    assert one.tokenizer.pad_token_id is None
    expected = [float(alone(folder, p + c)[0]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert one(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_of_several_labels_one_is_named_and_its_probability_is_the_reward(tmp_path):
    folder = save(tmp_path, labels=3)
    (score,) = Classifier(ClassifierSettings(model=folder, label="good"))(PROMPTS[:1], COMPLETIONS[:1])
    assert score == pytest.approx(float(alone(folder, "2 + 2?4").softmax(-1)[2]), abs=1e-5)
    with pytest.raises(ConfigError, match=r"has 3 labels \(bad, fair, good\)\. Name one"):
        Classifier(ClassifierSettings(model=folder))
    with pytest.raises(ConfigError, match=r"label='goood' is not a label .* Did you mean 'good'"):
        Classifier(ClassifierSettings(model=folder, label="goood"))


def test_a_label_of_a_model_with_one_output_is_not_ignored(folder):
    with pytest.raises(ConfigError, match="has one output only"):
        Classifier(ClassifierSettings(model=folder, label="good"))


def test_a_reward_model_that_is_not_there_says_what_can_be_given(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"cannot load the reward model 'nobody/nothing'.*file\.py:function"):
        rewards("nobody/nothing")


def test_a_models_id_is_short_for_a_classifier_that_stays_in_the_main_process(folder):
    config = Config.create({"train_dataset": "x", "reward_funcs": "org/reward-model"})
    assert config.reward_funcs[0].classifier == ClassifierSettings(model="org/reward-model")
    assert config.reward_funcs[0].label == "reward-model"
    (reward,) = rewards({"classifier": {"model": folder}})
    assert (reward.inline, reward.source) == (True, None)
    assert reward.name == Path(folder).name
    assert reward.function.model is None
