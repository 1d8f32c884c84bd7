"""`python -m weightbank`, the same as `weightbank`."""

from weightbank.cli import app

if __name__ == "__main__":
    app(prog_name="weightbank")
