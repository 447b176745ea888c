"""Which trust region lets a policy gradient learn from stale rollouts? (arXiv:2606.09821, arXiv:2602.04879)"""
