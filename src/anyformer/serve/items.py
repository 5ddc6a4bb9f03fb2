"""The body of /v1/responses, and its meaning as a conversation of /v1/chat/completions.

Nothing is stored, so `previous_response_id` is refused: the conversation so far comes in `input`, answers and calls
included, in the form in which they were given.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from anyformer.serve.asking import bad
from anyformer.serve.protocol import MOST_TOKENS, Body, Chat, Long, Short, ToolName

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Status = Literal["in_progress", "completed", "incomplete"]


class TextItem(BaseModel):
    """A part of a message: a text."""

    model_config = STRICT
    type: Literal["input_text", "output_text"]
    text: Long
    annotations: Annotated[list[JsonValue], Field(max_length=64)] | None = None
    logprobs: Annotated[list[JsonValue], Field(max_length=MOST_TOKENS)] | None = None


class ImageItem(BaseModel):
    """A part of a message: a picture as `data:image/png;base64,…`."""

    model_config = STRICT
    type: Literal["input_image"]
    image_url: Annotated[str, Field(max_length=16_000_000)]
    detail: Literal["auto", "low", "high"] | None = None


class Said(BaseModel):
    """A message."""

    model_config = STRICT
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Long | Annotated[list[Annotated[TextItem | ImageItem, Field(discriminator="type")]], Field(max_length=64)]
    id: Short | None = None
    status: Status | None = None


class CallItem(BaseModel):
    """A call that the model made."""

    model_config = STRICT
    type: Literal["function_call"]
    call_id: Short
    name: ToolName
    arguments: Annotated[str, Field(max_length=100_000)]
    id: Short | None = None
    status: Status | None = None


class OutputItem(BaseModel):
    """The result of a call."""

    model_config = STRICT
    type: Literal["function_call_output"]
    call_id: Short
    output: Long
    id: Short | None = None
    status: Status | None = None


class FlatTool(BaseModel):
    """A function that the model can call."""

    model_config = STRICT
    type: Literal["function"]
    name: ToolName
    description: Annotated[str, Field(max_length=4096)] | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class OwnTool(BaseModel):
    """A tool that the server runs, where it was started with it."""

    model_config = STRICT
    type: Literal["calculator", "search"]


FlatTools = Annotated[list[Annotated[FlatTool | OwnTool, Field(discriminator="type")]], Field(max_length=128)]


class FlatChosen(BaseModel):
    """The function that the answer must call."""

    model_config = STRICT
    type: Literal["function"]
    name: ToolName


class Format(BaseModel):
    """The form of the text: any, any JSON object, or one that follows a schema."""

    model_config = ConfigDict(**{**STRICT, "populate_by_name": True})
    type: Literal["text", "json_object", "json_schema"]
    name: Short | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    strict: bool | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")


class Text(BaseModel):
    """Options of the text."""

    model_config = STRICT
    format: Format | None = None


class Respond(Body):
    """The body of /v1/responses."""

    input: Long | Annotated[list[Said | CallItem | OutputItem], Field(min_length=1, max_length=1024)]
    instructions: Long | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=MOST_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    stream: bool | None = None
    tools: FlatTools | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChosen | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: Short | None = None

    def chat(self) -> Chat:
        """The same request as one for a chat.

        Raises:
            Refused: for a previous response, or a schema that is missing.
        """
        if self.previous_response_id is not None:
            text = "previous_response_id: nothing is stored here; send the conversation so far as input"
            raise bad(text, "previous_response_id", "unsupported_field")
        same = ("model", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "seed",
                "parallel_tool_calls")  # fmt: skip
        tools = [
            t.model_dump() if isinstance(t, OwnTool)
            else {"type": "function", "function": t.model_dump(exclude={"type"}, exclude_none=True)}
            for t in self.tools or ()
        ]  # fmt: skip
        choice: Any = self.tool_choice
        if isinstance(choice, FlatChosen):
            choice = {"type": "function", "function": {"name": choice.name}}
        body = {
            **{name: getattr(self, name) for name in same}, "max_tokens": self.max_output_tokens,
            "tools": tools or None, "tool_choice": choice, "messages": self.messages(),
            "response_format": self._format(),
        }  # fmt: skip
        try:
            return Chat.model_validate(body)
        except ValidationError as error:  # its text would repeat what a user wrote
            raise bad(f"input: {error.errors()[0]['msg']}", "input") from None

    def messages(self) -> list[dict[str, Any]]:
        """The conversation; calls that follow one another are one answer."""
        made: list[dict[str, Any]] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [Said(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        for item in items:
            if isinstance(item, Said):
                made.append({"role": item.role, "content": _parts(item)})
            elif isinstance(item, OutputItem):
                made.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
            else:
                function = {"name": item.name, "arguments": item.arguments}
                if not made or made[-1]["role"] != "assistant":
                    made.append({"role": "assistant", "content": None})
                calls = made[-1].setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
        return made

    def _format(self) -> dict[str, Any] | None:
        form = None if self.text is None else self.text.format
        if form is None or form.type != "json_schema":
            return None if form is None else {"type": form.type}
        if form.schema_ is None:
            raise bad("text.format: a json_schema needs its schema", "text")
        return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema_}}


def _parts(item: Said) -> Any:
    """The content of a message in a chat's form."""
    if isinstance(item.content, str):
        return item.content
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextItem)
        else {"type": "image_url", "image_url": {"url": part.image_url}}
        for part in item.content
    ]  # fmt: skip
