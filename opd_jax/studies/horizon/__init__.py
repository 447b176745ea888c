"""Are full rollouts necessary? (arXiv:2605.31490)"""
