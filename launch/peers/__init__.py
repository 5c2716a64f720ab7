# SPDX-License-Identifier: Apache-2.0
"""What our programs are timed against: the same work in PyTorch, as its users write it.

Nothing of the package imports these files; they need torch, transformers and diffusers, which
.ci/requirements.txt lists.
"""
