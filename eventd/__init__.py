"""eventd: AWS Lambda's programming model on a machine you own."""

__version__ = "0.1.0"
