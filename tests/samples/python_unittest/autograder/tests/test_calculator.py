import unittest

from gradescope_utils.autograder_utils.decorators import leaderboard, number, partial_credit, tags, visibility, weight


class TestCalculator(unittest.TestCase):
    def setUp(self):
        from calculator import Calculator

        self.calculator = Calculator()

    @weight(1)
    @number("1.1")
    def test_number(self):
        """Evaluates a number"""
        self.assertEqual(self.calculator.eval("42"), 42)

    @weight(2)
    @number("1.2")
    @tags("operators")
    def test_sum(self):
        """Evaluates a sum"""
        self.assertEqual(self.calculator.eval("1 + 2 + 3"), 6)

    @weight(3)
    @number("1.3")
    @visibility("after_published")
    def test_precedence(self):
        """Multiplies before it adds"""
        self.assertEqual(self.calculator.eval("2 + 3 * 4"), 14)

    @partial_credit(4)
    @number("2")
    def test_division(self, set_score=None):
        """Divides (one point for each expression)"""
        expressions = {"8 / 2": 4, "7 / 2": 3.5, "8 / 2 / 2": 2, "1 + 8 / 4": 3}
        set_score(sum(self.calculator.eval(text) == value for text, value in expressions.items()))

    @leaderboard("operators", "desc")
    def test_leaderboard(self, set_leaderboard_value=None):
        set_leaderboard_value(len(self.calculator.operators))


class TestStyle(unittest.TestCase):
    def test_docstring(self):
        """The class has a docstring (no points)"""
        from calculator import Calculator

        self.assertTrue(Calculator.__doc__)
