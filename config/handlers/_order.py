"""Shared by bill.py, pack.py and notify.py. A file whose name begins with an underscore is not a function; it can be imported."""

import base64
import json


def order_of(event):
    """The order in an event: the body of a webhook, the detail of an EventBridge event, or the event itself."""
    if "body" in event:
        body = event["body"] or ""
        order = json.loads(base64.b64decode(body) if event.get("isBase64Encoded") else body)
    else:
        order = event.get("detail", event)
    if not isinstance(order, dict) or not isinstance(order.get("items"), list) or "id" not in order:
        raise ValueError("this event holds no order: it needs an 'id' and a list of 'items'")
    return order
