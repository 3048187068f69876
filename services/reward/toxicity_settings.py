"""What differs between two judges of toxicity: a word list that comes with us, a classifier, or a guard model."""

from __future__ import annotations

from pydantic import Field

from services.reward.model_settings import ModelSettings


class ToxicitySettings(ModelSettings):
    """Settings of `tba-reward-toxicity`.

    Without a model, the judge is a small linear one over words that comes with us, blind to what has no bad word in
    it. A sequence classifier judges by its toxic label; a causal language model is asked as a guard.
    """

    toxic_label: str = Field(
        default="hate",
        min_length=1,
        description="classifier: the label whose probability counts; the wrong one turns the reward around",
    )
    guard_template: str = Field(
        default="chat",
        min_length=1,
        description="guard: chat, for the model's own template, or a text with {prompt} and {text} in it",
    )
    guard_suffix: str = Field(
        default="",
        description="guard: what stands between the template and the verdict, such as the two newlines of Llama "
        "Guard 3; without it the probabilities are of something else than the verdict",
    )
    unsafe_word: str = Field(
        default="unsafe",
        min_length=1,
        description="guard: the verdict whose first token's log-probability counts",
    )
