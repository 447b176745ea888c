"""The same evidence, the same answer, however the conversation delivered it? (arXiv:2605.30251)"""
