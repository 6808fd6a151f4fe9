// Reads topics to their ends with kafkajs and @kafkajs/confluent-schema-registry, and writes the rows that remain.
//
// Its argument is a file with the request; see tests/interop/clients.py for request and answer.
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
const rows = {}
const exact = {}

function reported(column, value) {
  if (value === null) return null
  const type = Buffer.isBuffer(value) ? 'Buffer' : typeof value
  types[column.name] = types[column.name] || type
  if (types[column.name] !== type) throw new Error(`${column.name} is ${type} and ${types[column.name]}`)
  if (type === 'Buffer') return decimal(value, column.scale)
  if (type === 'number' && Object.is(value, -0)) return '-0'
  return type === 'number' || type === 'bigint' ? String(value) : value
}

// The unscaled number, in two's complement and big-endian.
function decimal(bytes, scale) {
  const unscaled = bytes.length ? BigInt.asIntN(bytes.length * 8, BigInt(`0x${bytes.toString('hex')}`)) : 0n
  const digits = (unscaled < 0n ? -unscaled : unscaled).toString().padStart(scale + 1, '0')
  const text = scale ? `${digits.slice(0, -scale)}.${digits.slice(-scale)}` : digits
  return unscaled < 0n ? `-${text}` : text
}

async function take(registry, table, message) {
  const key = await registry.decode(message.key)
  const id = String(key.id)
  const event = message.value === null ? null : await registry.decode(message.value)
  if (event === null || event.op === 'd') {
    delete rows[table.name][id]
    delete exact[table.name][id]
    return
  }
  rows[table.name][id] = Object.fromEntries(
    table.columns.map((column) => [column.name, column.name in event.after ? reported(column, event.after[column.name]) : null]),
  )
  exact[table.name][id] = event.exact === null ? {} : { ...event.exact.after }
}

async function read(kafka, registry, table) {
  rows[table.name] = {}
  exact[table.name] = {}
  const left = new Map(Object.entries(table.last).map(([partition, offset]) => [Number(partition), BigInt(offset)]))
  const consumer = kafka.consumer({ groupId: `kafkajs-${table.topic}` })
  await consumer.connect()
  await consumer.subscribe({ topic: table.topic, fromBeginning: true })
  await new Promise((resolve, reject) => {
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        try {
          await take(registry, table, message)
        } catch (error) {
          return reject(error)
        }
        if (left.has(partition) && BigInt(message.offset) >= left.get(partition)) left.delete(partition)
        if (left.size === 0) resolve()
      },
    })
  })
  await consumer.disconnect()
}

async function main() {
  const kafka = new Kafka({ clientId: 'interop', brokers: request.bootstrap.split(','), logLevel: logLevel.ERROR })
  const options = request.bigint ? { [SchemaType.AVRO]: { typeHook } } : undefined
  const registry = new SchemaRegistry({ host: request.registry }, options)
  for (const table of request.tables) await read(kafka, registry, table)
  fs.writeFileSync(request.answer, JSON.stringify({ types, rows, exact }))
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error.message)
    process.exit(1)
  },
)
