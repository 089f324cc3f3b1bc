"""One of three functions that one order event is fanned out to: tell the customer. bill.py shows how to bind them.

Asynchronous handlers are awaited: this one could use any asyncio client of a mail or message service.
"""

import asyncio

from _order import order_of


async def send(address, text):
    await asyncio.sleep(0)  # stands for the network
    print(f"to {address}: {text}")


async def handler(event, context):
    order = order_of(event)
    address = order.get("email")
    if not address:
        print(f"order {order['id']} names no e-mail address")
        return {"order": order["id"], "notified": False}
    await send(address, f"We have your order {order['id']} and are packing it.")
    return {"order": order["id"], "notified": True}
