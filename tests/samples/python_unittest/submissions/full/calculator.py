import re


class Calculator:
    """Evaluates sums, products and quotients of numbers."""

    operators = "+*/"

    def eval(self, text):
        total = 0
        for term in text.split("+"):
            factor, *rest = re.split(r"([*/])", term)
            value = float(factor)
            for operator, operand in zip(rest[::2], rest[1::2]):
                value = value * float(operand) if operator == "*" else value / float(operand)
            total += value
        return total
