"""One of three functions that one order event is fanned out to: what to take from the shelves. bill.py shows how to bind them."""

from _order import order_of


def handler(event, context):
    order = order_of(event)
    wanted = {}
    for item in order["items"]:
        name = str(item["name"])
        wanted[name] = wanted.get(name, 0) + int(item.get("quantity", 1))
    lines = [{"name": name, "quantity": wanted[name]} for name in sorted(wanted)]
    print(f"pack order {order['id']}: " + ", ".join(f"{line['quantity']} x {line['name']}" for line in lines))
    return {"order": order["id"], "pieces": sum(wanted.values()), "lines": lines}
