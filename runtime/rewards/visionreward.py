"""VisionReward, which this runtime does not run: its backbone exists only as code that comes with its weights.

VisionReward asks a CogVLM2 some sixty yes-or-no questions and adds up the answers with learned weights. transformers has no
CogVLM2; its checkpoints bring Python files that would have to be run as they come, which is the same as running a
stranger's program. The method itself is ``videollama3``: the same questions and weights, put into its questions.json.
"""

WHY = (
    "reward 'visionreward': its backbone (CogVLM2) is not in transformers and exists only as Python that comes with the "
    "weights (trust_remote_code), which this runtime never runs; use 'videollama3', a backbone that transformers has, "
    "and put VisionReward's questions and weights into its questions.json"
)
