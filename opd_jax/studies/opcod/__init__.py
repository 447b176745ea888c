"""Two students tutor each other: claims of OPCoD (arXiv:2606.14368) on the built-in task operators."""
