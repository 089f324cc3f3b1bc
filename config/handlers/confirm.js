// Confirm an order by e-mail. Here the e-mail is printed; put your mail provider's client in its place.
//
// Bind it in eventd.toml, and post an order to it:
//
//     [triggers.orders]
//     type = "webhook"
//     path = "/orders"
//     methods = ["POST"]
//     function = "confirm"
//
//     curl -d '{"id": "A-17", "email": "ada@example.com", "items": [{"name": "Tea", "price": 4.5, "quantity": 2}]}' localhost:8080/orders

exports.handler = async (event, context) => {
  const order = orderOf(event);
  if (!order || typeof order.id !== 'string' || typeof order.email !== 'string' || !Array.isArray(order.items)) {
    return { statusCode: 400, body: JSON.stringify('An order needs an id, an email and items.') };
  }
  await sendEmail({
    to: order.email,
    subject: `Your order ${order.id}`,
    text: order.items.map((item) => `${item.quantity || 1} x ${item.name}`).join('\n') + `\nTotal: ${total(order.items)}`,
    // Retries of one event keep one request id, so a provider that knows idempotency keys sends the mail once.
    idempotencyKey: context.awsRequestId,
  });
  return { statusCode: 200, body: JSON.stringify('Email sent successfully!') };
};

// An order comes as the body of a request, or, with `eventd invoke confirm -d ...`, as the event itself.
function orderOf(event) {
  if (event === null || typeof event !== 'object' || event.body === undefined) return event;
  try {
    return JSON.parse(event.isBase64Encoded ? Buffer.from(event.body, 'base64').toString('utf8') : event.body);
  } catch {
    return null;
  }
}

// In cents, because 0.1 + 0.2 is not 0.3.
function total(items) {
  const cents = items.reduce((sum, item) => sum + Math.round((item.price || 0) * 100) * (item.quantity || 1), 0);
  return (cents / 100).toFixed(2);
}

async function sendEmail({ to, subject, text }) {
  console.log(`To: ${to}\nSubject: ${subject}\n\n${text}`);
}
