"""The context object of a Python handler, with the attributes and methods of awslambdaric's (lambda.md 1.8)."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


class Identity:
    """Always there; eventd has no Cognito, so its fields are None."""

    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self) -> None:
        self.cognito_identity_id: str | None = None
        self.cognito_identity_pool_id: str | None = None

    def __repr__(self) -> str:
        return f"CognitoIdentity([cognito_identity_id={self.cognito_identity_id},cognito_identity_pool_id={self.cognito_identity_pool_id}])"


class Client:
    __slots__ = ("app_package_name", "app_title", "app_version_code", "app_version_name", "installation_id")

    def __init__(self, fields: dict[str, Any]) -> None:
        for name in self.__slots__:
            setattr(self, name, fields.get(name))


class ClientContext:
    """What the caller sent as X-Amz-Client-Context."""

    __slots__ = ("client", "custom", "env", "w3c")

    def __init__(self, fields: dict[str, Any]) -> None:
        client = fields.get("client")
        self.client = Client(client) if isinstance(client, dict) else None
        self.custom = fields.get("custom")
        self.env = fields.get("env")
        self.w3c = fields.get("w3c")

    @staticmethod
    def of(text: str) -> ClientContext | None:
        """None for anything but a JSON object: the text is the caller's, and must not fail the run."""
        try:
            fields = json.loads(text)
        except ValueError:
            return None
        return ClientContext(fields) if isinstance(fields, dict) else None


class LambdaContext:
    """Attributes are plain and may be changed by the handler, as on Lambda."""

    def __init__(
        self, request_id: str, arn: str, deadline: int, start: dict[str, Any], identity: Identity, client_context: ClientContext | None
    ) -> None:
        self.aws_request_id = request_id
        self.log_group_name = start["log_group"]
        self.log_stream_name = start["log_stream"]
        self.function_name = start["function"]
        self.memory_limit_in_mb = start["memory"]
        self.function_version = start["version"]
        self.invoked_function_arn = arn
        self.client_context = client_context
        self.identity = identity
        self.tenant_id: str | None = None
        self._epoch_deadline_time_in_ms = deadline

    def get_remaining_time_in_millis(self) -> int:
        """Never below 0."""
        return max(self._epoch_deadline_time_in_ms - int(time.time() * 1000), 0)

    def log(self, message: object) -> None:
        """Write to the log as it is, without a line end of ours."""
        sys.stdout.write(str(message))

    def w3c(self) -> dict[str, Any]:
        """The W3C trace headers (`traceparent`, `tracestate`, `baggage`) of the client context, or an empty dict."""
        found = self.client_context.w3c if self.client_context is not None else None
        return dict(found) if isinstance(found, dict) else {}

    def __repr__(self) -> str:
        return (
            f"LambdaContext([aws_request_id={self.aws_request_id},log_group_name={self.log_group_name},"
            f"log_stream_name={self.log_stream_name},function_name={self.function_name},memory_limit_in_mb={self.memory_limit_in_mb},"
            f"function_version={self.function_version},invoked_function_arn={self.invoked_function_arn},"
            f"client_context={self.client_context},identity={self.identity},tenant_id={self.tenant_id}])"
        )
