"""GreenGrader: a carbon-aware autograding backend beside Gradescope."""
