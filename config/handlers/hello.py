"""The smallest function. Try it with nothing but a running daemon:  eventd invoke hello -d '{"name": "Ada"}'

Or over HTTP, in eventd.toml:

    [triggers.hello]
    type = "webhook"
    path = "/hello"
    function = "hello"
"""

import json


def handler(event, context):
    body = event.get("body") if isinstance(event, dict) else None
    try:
        given = json.loads(body) if body else event
    except ValueError:
        given = {}
    name = given.get("name") if isinstance(given, dict) else None
    print(f"request {context.aws_request_id}, {context.get_remaining_time_in_millis()} ms left")
    return {"message": f"Hello, {name or 'world'}!"}
