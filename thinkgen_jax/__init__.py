# SPDX-License-Identifier: Apache-2.0
"""Image generation that thinks first: ThinkGen's inference and five training stages in JAX."""

__version__ = "0.1.0"
