// One request by the official client, as a user of it would write it. Prints what became of it as JSON.
//
// node client.mjs PACKAGES PORT '{"key": …, "amount": …, "retries": …, "secret": …, "method": …}'
import { createRequire } from "node:module";

const [packages, port, order] = process.argv.slice(2);
const { key, amount = 100, retries = 0, secret = "sk_test_shop", method = "POST" } = JSON.parse(order);
const module = createRequire(`${packages}/`)("stripe");
const Stripe = module.default ?? module;
const stripe = new Stripe(secret, {
  host: "127.0.0.1",
  port: Number(port),
  protocol: "http",
  maxNetworkRetries: retries,
  telemetry: false,
});

const options = key === undefined ? {} : { idempotencyKey: key };
const request = () =>
  method === "DELETE" ? stripe.customers.del("cus_1", {}, options) : stripe.charges.create({ amount, currency: "eur" }, options);

try {
  const { id, lastResponse } = await request();
  const { statusCode, headers } = lastResponse;
  console.log(JSON.stringify({ charge: id ?? "a charge without a name", status: statusCode, replayed: headers["idempotent-replayed"] }));
} catch (error) {
  console.log(JSON.stringify({ error: error.type ?? String(error), raw: error.rawType, code: error.code, status: error.statusCode }));
}
// The client leaves answers unread after which it comes again, and their connections would be waited for.
process.exit(0);
