SELECT order_id, state, amount, items, customer_ip, reason FROM telemetry.orders ORDER BY order_id, state
