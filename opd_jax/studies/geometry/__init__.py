"""Which weights does on-policy distillation move, and do these suffice? (arXiv:2606.13657)"""
