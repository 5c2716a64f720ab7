# SPDX-License-Identifier: Apache-2.0
"""Image generation that thinks first: ThinkGen's inference and five training stages in JAX."""

import logging
import os

# transformers serves as a tokenizer here; it need not say that it found no PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# On a machine without a TPU jax tells every start that it found none.
logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)

__version__ = "0.1.0"
