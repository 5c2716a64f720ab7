# SPDX-License-Identifier: Apache-2.0
"""SepGRPO of the nano system with rewards of three servers, each with software of its own.

  word_ned          words are read in the picture by OCR
  miniature_robust  the miniature world's verifier
  siglip2           likeness of words and picture, of random weights: it shows that such a server
                    can be asked, and teaches nothing

`python -m launch.served` makes their environments, starts them and trains with this. All requests
are of the text scenario: nothing else has words that could be read.
"""

from configs import common, sepgrpo

PORT = 8101  # of the first server; the others follow
SERVED = dict(word_ned=0.5, miniature_robust=1.0, siglip2=0.1)


def scoring() -> dict:
    """Every reward at a server of this machine."""
    patience = dict(timeout=30.0, tries=2, backoff=0.5, workers=4)
    servers = {
        name: dict(urls=(f"http://127.0.0.1:{PORT + number}",), **patience)
        for number, name in enumerate(SERVED)
    }
    # Three dead steps of ten end the run: long enough to start a server again.
    return {**common.scoring(servers, **SERVED), "drop_limit": 0.2}


def get_config(arg=None):
    """No argument trains the nano system for a few steps; `:tiny` takes one of each phase."""
    common.parse_arg(arg, common.SMALL)
    config = sepgrpo.get_config(arg)
    config.name = "served"
    # Each part is scored while the next is drawn; what nobody hides is the last one's.
    chunks = dict(mllm_grpo=8, dit_grpo=12) if config.model == "nano" else {}
    for name, plan in config.plans.items():
        plan.update(scoring())
        plan.streams = dict(a_drawn=common.stream(1.0, dict(text=1.0), length=112))
        plan.chunks = chunks.get(name, 1)
    if config.model == "nano":
        config.steps, config.phases = 12, (("mllm_grpo", 3), ("dit_grpo", 3))
        config.checkpoint.every = 2
        config.evaluate.count = 0
    return config
