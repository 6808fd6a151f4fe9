-- The rows of TPC-C, clause 4.3, for as many warehouses as the setting bench.warehouses: 100,000 items, and for each
-- warehouse 100,000 stocks, 10 districts, and for each district 3,000 customers, each with a payment and an order of 5 to
-- 15 lines, of which the last 900 are new.

CREATE FUNCTION pg_temp.text(low integer, high integer) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT left(repeat(md5(random()::text), 16), low + floor(random() * (high - low + 1))::integer)
$$;

CREATE FUNCTION pg_temp.number(low integer, high integer) RETURNS integer LANGUAGE sql VOLATILE AS $$
    SELECT low + floor(random() * (high - low + 1))::integer
$$;

-- clause 4.3.2.3: three syllables, one for each digit
CREATE FUNCTION pg_temp.last_name(number integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(('{BAR,OUGHT,ABLE,PRI,PRES,ESE,ANTI,CALLY,ATION,EING}'::text[])[digit::integer + 1], '' ORDER BY n)
      FROM string_to_table(lpad(number::text, 3, '0'), NULL) WITH ORDINALITY AS of(digit, n)
$$;

CREATE TEMPORARY VIEW warehouses AS SELECT generate_series(1, current_setting('bench.warehouses')::integer) AS w;
CREATE TEMPORARY VIEW districts AS SELECT w, generate_series(1, 10) AS d FROM warehouses;

INSERT INTO item
SELECT i, pg_temp.number(1, 10000), pg_temp.text(14, 24), pg_temp.number(100, 10000) / 100.0, pg_temp.text(26, 50)
  FROM generate_series(1, 100000) i;

INSERT INTO warehouse
SELECT w, pg_temp.text(6, 10), pg_temp.text(10, 20), pg_temp.text(10, 20), pg_temp.text(10, 20), pg_temp.text(2, 2),
       pg_temp.number(1000, 9999) || '11111', pg_temp.number(0, 2000) / 10000.0, 300000
  FROM warehouses;

INSERT INTO stock
SELECT i, w, pg_temp.number(10, 100), pg_temp.text(24, 24), pg_temp.text(24, 24), pg_temp.text(24, 24),
       pg_temp.text(24, 24), pg_temp.text(24, 24), pg_temp.text(24, 24), pg_temp.text(24, 24), pg_temp.text(24, 24),
       pg_temp.text(24, 24), pg_temp.text(24, 24), 0, 0, 0, pg_temp.text(26, 50)
  FROM warehouses, generate_series(1, 100000) i;

INSERT INTO district
SELECT d, w, pg_temp.text(6, 10), pg_temp.text(10, 20), pg_temp.text(10, 20), pg_temp.text(10, 20), pg_temp.text(2, 2),
       pg_temp.number(1000, 9999) || '11111', pg_temp.number(0, 2000) / 10000.0, 30000, 3001
  FROM districts;

INSERT INTO customer
SELECT c, d, w, pg_temp.text(8, 16), 'OE',
       pg_temp.last_name(CASE WHEN c <= 1000 THEN c - 1 ELSE pg_temp.number(0, 999) END),
       pg_temp.text(10, 20), pg_temp.text(10, 20), pg_temp.text(10, 20), pg_temp.text(2, 2),
       pg_temp.number(1000, 9999) || '11111', pg_temp.text(16, 16), now(), CASE WHEN random() < 0.1 THEN 'BC' ELSE 'GC' END,
       50000, pg_temp.number(0, 5000) / 10000.0, -10, 10, 1, 0, pg_temp.text(300, 500)
  FROM districts, generate_series(1, 3000) c;

INSERT INTO history (h_c_id, h_c_d_id, h_c_w_id, h_d_id, h_w_id, h_date, h_amount, h_data)
SELECT c, d, w, d, w, now(), 10, pg_temp.text(12, 24) FROM districts, generate_series(1, 3000) c;

-- the customers in another order than their numbers: 1,001 and 3,000 have no common divisor
INSERT INTO orders
SELECT o, d, w, o * 1001 % 3000 + 1, now(), CASE WHEN o <= 2100 THEN pg_temp.number(1, 10) END, pg_temp.number(5, 15), 1
  FROM districts, generate_series(1, 3000) o;

INSERT INTO new_orders SELECT o_id, o_d_id, o_w_id FROM orders WHERE o_carrier_id IS NULL;

INSERT INTO order_line
SELECT o_id, o_d_id, o_w_id, n, pg_temp.number(1, 100000), o_w_id, CASE WHEN o_carrier_id IS NOT NULL THEN o_entry_d END,
       5, CASE WHEN o_carrier_id IS NULL THEN pg_temp.number(1, 999999) / 100.0 ELSE 0 END, pg_temp.text(24, 24)
  FROM orders, generate_series(1, o_ol_cnt) n;

-- after the rows, which is faster
ALTER TABLE warehouse ADD PRIMARY KEY (w_id);
ALTER TABLE district ADD PRIMARY KEY (d_w_id, d_id), ADD FOREIGN KEY (d_w_id) REFERENCES warehouse;
ALTER TABLE customer ADD PRIMARY KEY (c_w_id, c_d_id, c_id), ADD FOREIGN KEY (c_w_id, c_d_id) REFERENCES district;
ALTER TABLE history ADD PRIMARY KEY (h_id), ADD FOREIGN KEY (h_c_w_id, h_c_d_id, h_c_id) REFERENCES customer,
    ADD FOREIGN KEY (h_w_id, h_d_id) REFERENCES district;
ALTER TABLE orders ADD PRIMARY KEY (o_w_id, o_d_id, o_id), ADD FOREIGN KEY (o_w_id, o_d_id, o_c_id) REFERENCES customer;
ALTER TABLE new_orders ADD PRIMARY KEY (no_w_id, no_d_id, no_o_id),
    ADD FOREIGN KEY (no_w_id, no_d_id, no_o_id) REFERENCES orders;
ALTER TABLE item ADD PRIMARY KEY (i_id);
ALTER TABLE stock ADD PRIMARY KEY (s_w_id, s_i_id), ADD FOREIGN KEY (s_w_id) REFERENCES warehouse,
    ADD FOREIGN KEY (s_i_id) REFERENCES item;
ALTER TABLE order_line ADD PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number),
    ADD FOREIGN KEY (ol_w_id, ol_d_id, ol_o_id) REFERENCES orders,
    ADD FOREIGN KEY (ol_supply_w_id, ol_i_id) REFERENCES stock;
CREATE INDEX customer_by_name ON customer (c_w_id, c_d_id, c_last, c_first);
