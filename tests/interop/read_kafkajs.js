// Reads topics to their ends with kafkajs and @kafkajs/confluent-schema-registry, and writes the rows that remain.
//
// Its argument is a file with the request; see tests/interop/reading.py for request and answer.
'use strict'

const fs = require('fs')
const { Kafka, CompressionTypes, CompressionCodecs, logLevel } = require('kafkajs')
const { SchemaRegistry, SchemaType } = require('@kafkajs/confluent-schema-registry')
const lz4 = require('lz4js')
const avro = require('avsc')

const request = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'))

// kafkajs-lz4 has to be compiled; this codec is JavaScript.
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async (encoder) => Buffer.from(lz4.compress(encoder.buffer)),
  decompress: async (bytes) => Buffer.from(lz4.decompress(bytes)),
})

// avsc reads a long as a number, and refuses one above 2^53.
const long = avro.types.LongType.__with({
  fromBuffer: (bytes) => bytes.readBigInt64LE(),
  toBuffer: (value) => {
    const bytes = Buffer.alloc(8)
    bytes.writeBigInt64LE(value)
    return bytes
  },
  fromJSON: BigInt,
  toJSON: String,
  isValid: (value) => typeof value === 'bigint',
  compare: (one, other) => (one === other ? 0 : one < other ? -1 : 1),
})
const typeHook = (schema) => ((schema.type || schema) === 'long' ? long : undefined)

const types = {}
const keys = {}
const rows = {}
const exact = {}

// Returns a value as its users see it, a decimal as its unscaled number; adds its type to `types`.
function reported(types, name, value) {
  if (value === null) return null
  const type = Buffer.isBuffer(value) ? 'Buffer' : typeof value
  types[name] = types[name] || type
  if (types[name] !== type) throw new Error(`${name} is ${type} and ${types[name]}`)
  if (type === 'Buffer') return unscaled(value)
  if (type === 'number' && Object.is(value, -0)) return '-0'
  return type === 'number' || type === 'bigint' ? String(value) : value
}

// Big-endian, in two's complement.
function unscaled(bytes) {
  return String(bytes.length ? BigInt.asIntN(bytes.length * 8, BigInt(`0x${bytes.toString('hex')}`)) : 0n)
}

// Applies a record to `kept`, key → partition, row and exact values.
async function take(registry, table, kept, partition, message) {
  const event = message.value === null ? null : await registry.decode(message.value)
  if (event !== null && event.op === 't') {
    // A truncate is in each partition, after the partition's rows that it deleted.
    for (const [id, each] of kept) if (each.partition === partition) kept.delete(id)
    return
  }
  const key = await registry.decode(message.key)
  const id = JSON.stringify(table.key.map((name) => reported(keys[table.name], name, key[name])))
  if (event === null || event.op === 'd') {
    kept.delete(id)
    return
  }
  const row = table.columns.map(({ name }) => [
    name,
    name in event.after ? reported(types[table.name], name, event.after[name]) : null,
  ])
  kept.set(id, { partition, row: Object.fromEntries(row), exact: event.exact === null ? {} : { ...event.exact.after } })
}

async function read(kafka, registry, table) {
  types[table.name] = {}
  keys[table.name] = {}
  const kept = new Map()
  const left = new Map(Object.entries(table.last).map(([partition, offset]) => [Number(partition), BigInt(offset)]))
  const consumer = kafka.consumer({ groupId: `kafkajs-${table.topic}` })
  await consumer.connect()
  await consumer.subscribe({ topic: table.topic, fromBeginning: true })
  await new Promise((resolve, reject) => {
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        try {
          await take(registry, table, kept, partition, message)
        } catch (error) {
          return reject(error)
        }
        if (left.has(partition) && BigInt(message.offset) >= left.get(partition)) left.delete(partition)
        if (left.size === 0) resolve()
      },
    })
  })
  await consumer.disconnect()
  rows[table.name] = [...kept.values()].map((each) => each.row)
  exact[table.name] = [...kept.values()].map((each) => each.exact)
}

async function main() {
  const kafka = new Kafka({ clientId: 'interop', brokers: request.bootstrap.split(','), logLevel: logLevel.ERROR })
  const options = request.bigint ? { [SchemaType.AVRO]: { typeHook } } : undefined
  const registry = new SchemaRegistry({ host: request.registry }, options)
  for (const table of request.tables) await read(kafka, registry, table)
  fs.writeFileSync(request.answer, JSON.stringify({ types, keys, rows, exact }))
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error.message)
    process.exit(1)
  },
)
