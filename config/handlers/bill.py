"""One of three functions that one order event is fanned out to: the bill. See also pack.py and notify.py.

    [triggers.shop]
    type = "webhook"
    path = "/shop/orders"
    methods = ["POST"]
    mode = "async"                  # answered 202 as soon as the order is on disk; the same Idempotency-Key runs once

    [[bindings]]
    trigger = "shop"
    function = "bill"

    [[bindings]]
    trigger = "shop"
    function = "pack"

    [[bindings]]
    trigger = "shop"
    function = "notify"

Each binding is an invocation of its own: when packing fails, only packing is tried again.
"""

from decimal import Decimal

from _order import order_of


def handler(event, context):
    order = order_of(event)
    total = sum((Decimal(str(item.get("price", 0))) * int(item.get("quantity", 1)) for item in order["items"]), Decimal())
    bill = {"order": order["id"], "total": f"{total:.2f}", "currency": order.get("currency", "EUR")}
    # A retry has the same order id: store bills under it, and the customer is billed once.
    print(f"bill for order {bill['order']}: {bill['total']} {bill['currency']}")
    return bill
