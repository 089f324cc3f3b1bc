"""The HTTP front door: an HTTP/1.1 server protocol on httptools with deadlines and limits, and a route table."""

from eventd.http.message import Request, Response, Route

__all__ = ["Request", "Response", "Route"]
