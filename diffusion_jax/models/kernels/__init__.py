"""The formulas that cost a network its time, and the forms of them that pay on a platform.

Each file begins with the plain formula, the truth that tests hold every other form to. The form is
chosen where the program is lowered, so that a program exported on a CPU for a GPU is a GPU's. A
choice stands inside a function whose derivative is given, in one form for all platforms:
differentiating a choice would keep what the backward pass needs of every form.
"""
