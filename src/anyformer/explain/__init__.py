"""Looking inside: the facts of a model (`inspect`), pictures of its attention (`attention_picture`), and what made it
say something: shares of the input (`attribute`), of layers (`lens`), of branches and heads (`direct`, `patch`,
`patch_path`, `roles`), of neurons (`neurons`); and directions that change it (`contrast`)."""

from anyformer.explain.attention import attention_picture
from anyformer.explain.attribution import Attribution, attribute
from anyformer.explain.direct import Direct, direct
from anyformer.explain.facts import Facts, inspect
from anyformer.explain.lens import Lens, lens
from anyformer.explain.neurons import Neurons, neurons
from anyformer.explain.patching import Patched, patch
from anyformer.explain.patching_more import Patching, patch_path
from anyformer.explain.roles import Roles, roles
from anyformer.explain.steering import contrast
from anyformer.explain.target import Contrast

__all__ = ["Attribution", "Contrast", "Direct", "Facts", "Lens", "Neurons", "Patched", "Patching", "Roles",
           "attention_picture", "attribute", "contrast", "direct", "inspect", "lens", "neurons", "patch", "patch_path",
           "roles"]  # fmt: skip
