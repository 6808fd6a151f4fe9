"""Order entry like TPC-C's: `python -m tests.benchmarks.orders_load DSN_FILE WAREHOUSES TRANSACTIONS SEED`.

A few clients do the given number of its two most frequent transactions, new-order and payment (clauses 2.4 and 2.5),
in the standard's proportion and without its keying and think times. Prints a summary as JSON: `changes` are the rows
that were inserted or updated by transactions that committed.
"""

from __future__ import annotations

import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psycopg

_CLIENTS: Final = 4
_NEW_ORDERS: Final = 45 / (45 + 43)
_UNUSED_ITEM: Final = 0.01
_REMOTE_STOCK: Final = 0.01
_REMOTE_PAYMENT: Final = 0.15
_BY_NAME: Final = 0.6
_DISTRICTS: Final = 10
_CUSTOMERS: Final = 3_000
_ITEMS: Final = 100_000
_SYLLABLES: Final = ("BAR", "OUGHT", "ABLE", "PRI", "PRES", "ESE", "ANTI", "CALLY", "ATION", "EING")

_PRICES: Final = "SELECT i_id, i_price FROM item WHERE i_id = ANY(%s)"
_NEXT_ORDER: Final = """
    UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = %s AND d_id = %s RETURNING d_next_o_id - 1
"""
_ORDER: Final = "INSERT INTO orders VALUES (%s, %s, %s, %s, clock_timestamp(), NULL, %s, %s)"
_NEW_ORDER: Final = "INSERT INTO new_orders VALUES (%s, %s, %s)"
_STOCK: Final = """
    UPDATE stock
       SET s_quantity = CASE WHEN s_quantity >= quantity + 10 THEN s_quantity - quantity
                             ELSE s_quantity - quantity + 91 END,
           s_ytd = s_ytd + quantity,
           s_order_cnt = s_order_cnt + 1,
           s_remote_cnt = s_remote_cnt + CASE WHEN s_w_id = %s THEN 0 ELSE 1 END
      FROM unnest(%s::integer[], %s::integer[], %s::smallint[]) AS line (supplier, item, quantity)
     WHERE s_w_id = supplier AND s_i_id = item
"""
_LINES: Final = """
    INSERT INTO order_line
    SELECT %s, %s, %s, number, item, supplier, NULL, quantity, amount, (
           ARRAY[s_dist_01, s_dist_02, s_dist_03, s_dist_04, s_dist_05,
                 s_dist_06, s_dist_07, s_dist_08, s_dist_09, s_dist_10])[%s]
      FROM unnest(%s::integer[], %s::integer[], %s::smallint[], %s::numeric[])
           WITH ORDINALITY AS line (supplier, item, quantity, amount, number)
      JOIN stock ON s_w_id = supplier AND s_i_id = item
"""
_NAMED: Final = """
    SELECT c_id FROM customer WHERE c_w_id = %s AND c_d_id = %s AND c_last = %s ORDER BY c_first
"""
_WAREHOUSE: Final = "UPDATE warehouse SET w_ytd = w_ytd + %s WHERE w_id = %s RETURNING w_name"
_DISTRICT: Final = "UPDATE district SET d_ytd = d_ytd + %s WHERE d_w_id = %s AND d_id = %s RETURNING d_name"
_CUSTOMER: Final = """
    UPDATE customer
       SET c_balance = c_balance - %(amount)s,
           c_ytd_payment = c_ytd_payment + %(amount)s,
           c_payment_cnt = c_payment_cnt + 1,
           c_data = CASE WHEN c_credit = 'BC'
               THEN left(concat_ws(' ', c_id, c_d_id, c_w_id, %(payment)s::text, %(amount)s, c_data), 500)
               ELSE c_data END
     WHERE c_w_id = %(warehouse)s AND c_d_id = %(district)s AND c_id = %(customer)s
"""
_HISTORY: Final = """
    INSERT INTO history (h_c_id, h_c_d_id, h_c_w_id, h_d_id, h_w_id, h_date, h_amount, h_data)
    VALUES (%s, %s, %s, %s, %s, clock_timestamp(), %s, %s)
"""


@dataclass(slots=True)
class Client:
    """Does transactions over its own connection, each for a random warehouse of `warehouses`."""

    connection: psycopg.Connection[Any]
    warehouses: int
    choose: random.Random

    def transaction(self) -> int:
        """Do one transaction; return the number of rows that it changed, 0 if it was rolled back."""
        work = self._new_order if self.choose.random() < _NEW_ORDERS else self._payment
        while True:
            try:
                changed = 0
                with self.connection.transaction():
                    changed = work()
                    # The standard's users enter an unused item now and then, which is found at last.
                    if work == self._new_order and self.choose.random() < _UNUSED_ITEM:
                        changed = 0
                        raise psycopg.Rollback
                return changed
            except psycopg.errors.DeadlockDetected:
                continue

    def _new_order(self) -> int:
        choose, home = self.choose, self._warehouse()
        district, customer = choose.randint(1, _DISTRICTS), self._skewed(1023, 1, _CUSTOMERS)
        items = {self._skewed(8191, 1, _ITEMS) for _ in range(choose.randint(5, 15))}
        # in order, so that two transactions rarely wait for each other
        lines = sorted((self._other(home, _REMOTE_STOCK), item, choose.randint(1, 10)) for item in items)
        suppliers, ordered, quantities = (list(column) for column in zip(*lines, strict=True))
        execute = self.connection.execute
        prices = dict(execute(_PRICES, (ordered,)).fetchall())
        amounts = [quantity * prices[item] for _, item, quantity in lines]
        counter = execute(_NEXT_ORDER, (home, district))
        (order,) = counter.fetchall()[0]
        local = int(all(supplier == home for supplier in suppliers))
        made = [
            counter,
            execute(_ORDER, (order, district, home, customer, len(lines), local)),
            execute(_NEW_ORDER, (order, district, home)),
            execute(_STOCK, (home, suppliers, ordered, quantities)),
            execute(_LINES, (order, district, home, district, suppliers, ordered, quantities, amounts)),
        ]
        return sum(each.rowcount for each in made)

    def _payment(self) -> int:
        choose, home = self.choose, self._warehouse()
        district, amount = choose.randint(1, _DISTRICTS), Decimal(choose.randint(100, 500_000)) / 100
        place = self._other(home, _REMOTE_PAYMENT)
        customer = self._customer(place, district)
        execute = self.connection.execute
        warehouse = execute(_WAREHOUSE, (amount, home))
        part = execute(_DISTRICT, (amount, home, district))
        names = f"{warehouse.fetchall()[0][0]}    {part.fetchall()[0][0]}"
        payer = {"warehouse": place, "district": district, "customer": customer}
        paid = execute(_CUSTOMER, {**payer, "amount": amount, "payment": f"{district} {home}"})
        noted = execute(_HISTORY, (customer, district, place, district, home, amount, names))
        return sum(each.rowcount for each in (warehouse, part, paid, noted))

    def _customer(self, warehouse: int, district: int) -> int:
        """Return a customer's id: mostly of the one in the middle of those with a random last name."""
        if self.choose.random() >= _BY_NAME:
            return self._skewed(1023, 1, _CUSTOMERS)
        name = "".join(_SYLLABLES[int(digit)] for digit in f"{self._skewed(255, 0, 999):03d}")
        found = self.connection.execute(_NAMED, (warehouse, district, name)).fetchall()
        return int(found[len(found) // 2][0])

    def _warehouse(self) -> int:
        return self.choose.randint(1, self.warehouses)

    def _other(self, home: int, share: float) -> int:
        """Return `home`, or for a share of the calls another warehouse if there is one."""
        if self.warehouses == 1 or self.choose.random() >= share:
            return home
        return self.choose.choice([number for number in range(1, self.warehouses + 1) if number != home])

    def _skewed(self, mask: int, least: int, most: int) -> int:
        """Return a number from `least` to `most`, some more often than others: NURand of clause 2.1.6, with C = 0."""
        return (self.choose.randint(0, mask) | self.choose.randint(least, most)) % (most - least + 1) + least


def work(dsn: str, warehouses: int, transactions: int, seed: int) -> int:
    """Do transactions over one connection; return the number of rows that they changed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        client = Client(connection, warehouses, random.Random(seed))
        return sum(client.transaction() for _ in range(transactions))


def main() -> None:
    """Run with the command line's arguments."""
    file = sys.argv[1]
    warehouses, transactions, seed = map(int, sys.argv[2:])
    dsn = Path(file).read_text(encoding="utf-8")
    shares = [len(range(number, transactions, _CLIENTS)) for number in range(_CLIENTS)]
    began = time.monotonic()
    with ThreadPoolExecutor(_CLIENTS) as pool:
        clients = [
            pool.submit(work, dsn, warehouses, share, seed * _CLIENTS + number) for number, share in enumerate(shares)
        ]
        changes = sum(client.result() for client in clients)
    print(json.dumps({"changes": changes, "transactions": transactions, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
