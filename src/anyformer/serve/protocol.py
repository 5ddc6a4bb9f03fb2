"""The bodies of requests: OpenAI's fields, each of one type, finite and capped. An unknown field is an error.

Beside OpenAI's own: `top_k`, `min_p`, `typical_p`, `repetition_penalty`, as in `anyformer.generate.generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from anyformer.generate.options import Options

MOST_TOKENS = 1_000_000  # of any count; a server's own limits are lower
MOST_TEXT = 4_000_000  # characters of one text
Short = Annotated[str, Field(max_length=256)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Long = Annotated[str, Field(max_length=MOST_TEXT)]
Longs = Annotated[list[Long], Field(min_length=1, max_length=4096)]
TokenName = Annotated[str, Field(max_length=10, pattern=r"^[0-9]+$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ids = Annotated[list[Id], Field(max_length=MOST_TOKENS, min_length=1)]


class Body(BaseModel):
    """The base of all: strict types, no unknown fields, no NaN.

    Attributes:
        user, metadata, store, service_tier, safety_identifier, prompt_cache_key: accepted without effect: they concern
            the operator's records, and this server keeps none.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    model: Short | None = None
    user: Short | None = None
    metadata: dict[Short, Short] | None = Field(None, max_length=16)
    store: bool | None = None
    service_tier: Short | None = None
    safety_identifier: Short | None = None
    prompt_cache_key: Short | None = None


class Plain(BaseModel):
    """An answer without a form, or in the form of any JSON object."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text", "json_object"]


class Schema(BaseModel):
    """A JSON schema; the answer always follows it, `strict` or not."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    name: Short | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    strict: bool | None = None
    schema_: dict[str, JsonValue] = Field(alias="schema")


class Formed(BaseModel):
    """An answer that follows a JSON schema."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["json_schema"]
    json_schema: Schema


class StreamOptions(BaseModel):
    """Options of a stream: a last piece with the numbers of tokens."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Writing(Body):
    """The fields of every request for a text; a missing temperature is 1, as in OpenAI's protocol."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=MOST_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenName, Bias] | None = Field(None, max_length=1024)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Annotated[Plain | Formed, Field(discriminator="type")] | None = None

    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema that the text must follow, or None."""
        if isinstance(self.response_format, Formed):
            return dict(self.response_format.json_schema.schema_)
        plain = self.response_format is None or self.response_format.type == "text"
        return None if plain else {"type": "object"}

    def options(self, new_tokens: int) -> list[Options]:
        """The options of each of the `n` texts: with a seed s they draw from s, s + 1 …"""
        bias = None if self.logit_bias is None else {int(token): bias for token, bias in self.logit_bias.items()}
        return [
            Options(
                new_tokens, 1.0 if self.temperature is None else self.temperature, self.top_k, self.top_p, self.min_p,
                self.repetition_penalty, self.stop or (), None if self.seed is None else (self.seed + i) % 2**63, True,
                presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty, logit_bias=bias,
                schema=self.schema_asked(), typical_p=self.typical_p,
            )
            for i in range(self.n or 1)
        ]  # fmt: skip

    def count(self) -> int | None:
        """The most new tokens, or None."""
        return self.max_tokens


class TextPart(BaseModel):
    """A part of a message: a text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text"]
    text: Long


class ImageAddress(BaseModel):
    """A picture as `data:image/png;base64,…`; other addresses are refused: the server fetches nothing."""

    model_config = ConfigDict(strict=True, extra="forbid")
    url: Annotated[str, Field(max_length=16_000_000)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """A part of a message: a picture."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Called(BaseModel):
    """The function of a call, its arguments as JSON text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: ToolName
    arguments: Annotated[str, Field(max_length=100_000)]


class ToolCall(BaseModel):
    """A call in an answer."""

    model_config = ConfigDict(strict=True, extra="forbid")
    id: Short
    type: Literal["function"]
    function: Called


class Message(BaseModel):
    """A message of a conversation; without a content only an answer with calls."""

    model_config = ConfigDict(strict=True, extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Long | Annotated[list[Part], Field(min_length=1, max_length=64)] | None = None
    name: Short | None = None
    refusal: Short | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Short | None = None


class Function(BaseModel):
    """A function that the model can call; its calls always follow the schema, `strict` or not."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    name: ToolName
    description: Annotated[str, Field(max_length=4096)] | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class FunctionTool(BaseModel):
    """A tool that the client runs."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["function"]
    function: Function


class IncludedTool(BaseModel):
    """A tool that the server runs, where it was started with it."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["calculator", "search"]


class ChosenName(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: ToolName


class Chosen(BaseModel):
    """The function that the answer must call."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["function"]
    function: ChosenName


ToolChoice = Literal["none", "auto", "required"] | Chosen
Tools = Annotated[list[Annotated[FunctionTool | IncludedTool, Field(discriminator="type")]], Field(max_length=128)]


class Chat(Writing):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    def count(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def top(self) -> int | None:
        """The number of alternatives at each token; None = no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class Completion(Writing):
    """The body of /v1/completions; prompts are texts or token ids, one or several."""

    prompt: Long | Longs | Ids | Annotated[list[Ids], Field(min_length=1, max_length=4096)]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Literal[1] | None = None

    def prompts(self) -> Sequence[Any]:
        """The prompts, one an entry: a text or ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class Embedding(Body):
    """The body of /v1/embeddings."""

    input: Long | Annotated[list[Long], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=65536)


class Attend(Body):
    """The body of /attention: what the model continued, its answer, and the number of one token of it."""

    prompt: Long | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)] | None = None
    answer: Annotated[str, Field(min_length=1, max_length=100_000)]
    token: int = Field(-1, ge=-1_000_000, le=1_000_000)


class Explain(Attend):
    """The body of /explain: as of /attention, and the method of the shares."""

    method: Literal["grad", "ig", "occlusion"] = "grad"


class Ask(Body):
    """The body of /ask: a question for the documents of the server; without a model their own sentences answer."""

    question: Annotated[str, Field(min_length=1, max_length=20_000)]
    k: int = Field(6, ge=1, le=50)
    max_tokens: int = Field(160, ge=1, le=MOST_TOKENS)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)


class Tokenize(Body):
    """The body of /tokenize: a text, or the messages of a conversation."""

    prompt: Long | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)] | None = None
    add_special_tokens: bool = True
