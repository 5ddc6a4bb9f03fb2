"""Decision Transformer (Chen et al., 2021; arXiv:2106.01345). A decoder of episodes that acts for a wanted return.

Differs from GPT-2 by: numbers instead of tokens, three positions a step; each step of an episode has a vector, and
positions have none; heads predict the action at the state, the next state and the return to go at the action.

```
return to go ── linear ─┐
state ───────── linear ─┼─ + time[step] ── LayerNorm ── R_0 s_0 a_0 R_1 s_1 a_1 … ── GPT-2's block x depth ── LayerNorm
action ──────── linear ─┘                                    action <- s_t;  next state, next return to go <- a_t
```
Returns to go are inputs: at the first step the wanted return, then the rest of it after each reward.
"""

from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import key, keys
from anyformer.hub.tables.gpt2 import layer_config, layer_rows, stored_masks
from anyformer.hub.tables.weights import Hub, row
from anyformer.parts import MLP, Attention, Block, EachStep, LayerNorm, Trajectory
from anyformer.skeletons.actor import Actor


@dataclass(frozen=True)
class DecisionTransformer:
    dim: int = 128
    depth: int = 3
    heads: int = 1
    hidden: int | None = None  # 4 x dim
    state: int = 17  # numbers of a state
    action: int = 4  # numbers of an action
    steps: int = 4096  # of the longest episode
    tanh: bool = True  # actions between -1 and 1
    act: str = "relu"
    eps: float = 1e-5
    places: int = 1024  # rows of a table of which the first is read
    unread: int = 1  # rows of an unused table
    dropout: float = 0.0  # after each branch
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0


def decision_transformer(c: DecisionTransformer) -> Recipe:
    norm = LayerNorm.of(eps=c.eps)
    mixer = Attention.of(heads=c.heads, dropout=c.attention_dropout)
    block = Block.of(mixer=mixer, ffn=MLP.of(hidden=c.hidden, act=c.act), norm=norm, dropout=c.dropout)
    embed = Trajectory.of(
        state=c.state, action=c.action, steps=c.steps, places=c.places, unread=c.unread, dropout=c.embed_dropout
    )
    heads = {
        "action": EachStep.of(size=c.action, place="state", tanh=c.tanh),
        "state": EachStep.of(size=c.state, place="action"),
        "returns": EachStep.of(size=1, place="action"),
    }
    return Actor.of(c.dim, embed, [block] * c.depth, norm=norm, heads=heads)


SIZES = {
    "tiny": DecisionTransformer(dim=32, depth=2, heads=4, state=3, action=2, steps=50, places=6),
    "mini": DecisionTransformer(dim=48, depth=2, heads=2, state=4, action=2, places=1),
    "hopper": DecisionTransformer(state=11, action=3, steps=1000),
    "halfcheetah": DecisionTransformer(state=17, action=6, steps=1000),
}
PARAMETERS = {"tiny": 27_814, "mini": 254_215, "hopper": 858_639, "halfcheetah": 860_952}
CASES = {
    "choices": {"tanh": False, "places": 1},
    "odd": {"dim": 30, "heads": 3, "hidden": 50, "state": 1, "action": 5, "depth": 3, "unread": 2},
}


def _weights(c: DecisionTransformer) -> list:
    return [
        row("embed_return", "embed.returns"),
        row("embed_state", "embed.state"),
        row("embed_action", "embed.action"),
        row("embed_timestep", "embed.time"),
        row("embed_ln", "embed.norm"),
        row("encoder.wpe", "embed.places"),
        row("encoder.wte.weight", "embed.unread"),
        *layer_rows("encoder"),
        row("predict_action.0", "heads.action.proj"),
        row("predict_state", "heads.state.proj"),
        row("predict_return", "heads.returns.proj"),
    ]


HUBS = (
    Hub(
        "decision_transformer",
        architectures={"DecisionTransformerModel": {}},
        ignore=stored_masks("encoder"),
        outputs={"action_preds": "heads.action", "state_preds": "heads.state", "return_preds": "heads.returns"},
        weights=_weights,
        config=(
            *keys(hidden_size="dim", state_dim="state", act_dim="action", max_ep_len="steps"),
            key("action_tanh", "tanh", default=True),
            key("n_positions", "places", also=("n_ctx",)),
            key("vocab_size", "unread"),
            *layer_config("relu"),
        ),
    ),
)
