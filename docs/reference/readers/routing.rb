# frozen_string_literal: true

# Computes where a repository is while rehash_moves moves it: the reference reader in Ruby for docs/how-to/routing.md. It
# needs only the standard library. As a program it answers the tests: one question a line, as JSON, one answer a line.

require 'digest'
require 'json'
require 'zlib'

module Routing
  PARTITIONS = 16
  DELETED = /\A(?:DELETED-[0-9]+\.[0-9]+-)+/
  MASK = (1 << 64) - 1

  module_function

  # The form of a name that is hashed and ordered. Pass the name as it is in the database, not a normal form.
  def normal_form(name)
    name = name.sub(DELETED, '').delete_suffix('.git')
    parts = name.split('/').each_with_object([]) do |part, above|
      case part
      when '', '.' then next
      when '..' then above.pop
      else above.push(part)
      end
    end
    host, *rest = parts
    return host.to_s if rest.empty?

    host = lower(host)
    rest = rest.join('/')
    "#{host}/#{host == 'github.com' ? lower(rest) : rest}"
  end

  # Letter by letter: İ stays one letter, and Σ is σ also at the end of a word.
  def lower(text)
    text.each_char.map { |letter| letter == 'İ' ? 'i' : letter.downcase }.join
  end

  # The number of the cursor that a normal form belongs to.
  def partition(key)
    Zlib.crc32(key) % PARTITIONS
  end

  # Whether the cursors have passed a normal form: then its rendezvous home comes first. Names are compared by bytes.
  def passed?(key, cursors)
    cursor = cursors.find { |row| row['partition'] == partition(key) }
    return false unless cursor

    cursor['finished'] || (!cursor['upto'].nil? && (key.b <=> cursor['upto'].b) <= 0)
  end

  # The old home of a normal form.
  def md5_home(key, nodes)
    nodes[Digest::MD5.digest(key).unpack1('Q>') % nodes.length]
  end

  # The new home of a normal form; of two equal scores the earlier node's wins.
  def rendezvous_home(key, nodes)
    hashed = xxh64(key)
    nodes.each_with_index.max_by { |node, index| [score(hashed ^ xxh64(node)), -index] }.first
  end

  def score(x)
    x ^= x >> 12
    x = (x ^ (x << 25)) & MASK
    x ^= x >> 27
    (x * 2_685_821_657_736_338_717) & MASK
  end

  # The nodes to ask for a repository, in this order: the second only if the first does not have it.
  def homes(name, nodes, pins, cursors)
    key = normal_form(name)
    pins.each { |pinned, node| return [node] if normal_form(pinned) == key }
    both = [md5_home(key, nodes), rendezvous_home(key, nodes)]
    both.reverse! if passed?(key, cursors)
    both.uniq
  end

  PRIMES = [
    11_400_714_785_074_694_791, 14_029_467_366_897_019_727, 1_609_587_929_392_839_161,
    9_650_029_242_287_828_579, 2_870_177_450_012_600_261
  ].freeze

  # XXH64 with seed 0.
  def xxh64(text)
    rest = text.b
    p1, p2, p3, p4, p5 = PRIMES
    hash = p5
    if rest.bytesize >= 32
      sums = [(p1 + p2) & MASK, p2, 0, -p1 & MASK]
      while rest.bytesize >= 32
        lanes = rest.unpack('Q<4')
        sums = sums.zip(lanes).map { |sum, lane| round(sum, lane) }
        rest = rest.byteslice(32..)
      end
      hash = sums.zip([1, 7, 12, 18]).sum { |sum, by| rotate(sum, by) } & MASK
      sums.each { |sum| hash = ((hash ^ round(0, sum)) * p1 + p4) & MASK }
    end
    hash = (hash + text.bytesize) & MASK
    while rest.bytesize >= 8
      hash = (rotate(hash ^ round(0, rest.unpack1('Q<')), 27) * p1 + p4) & MASK
      rest = rest.byteslice(8..)
    end
    if rest.bytesize >= 4
      hash = (rotate(hash ^ (rest.unpack1('L<') * p1 & MASK), 23) * p2 + p3) & MASK
      rest = rest.byteslice(4..)
    end
    rest.each_byte { |byte| hash = rotate(hash ^ (byte * p5 & MASK), 11) * p1 & MASK }
    hash = (hash ^ (hash >> 33)) * p2 & MASK
    hash = (hash ^ (hash >> 29)) * p3 & MASK
    hash ^ (hash >> 32)
  end

  def rotate(value, by)
    ((value << by) | (value >> (64 - by))) & MASK
  end

  def round(sum, lane)
    rotate((sum + lane * PRIMES[1]) & MASK, 31) * PRIMES[0] & MASK
  end
end

if $PROGRAM_NAME == __FILE__
  $stdin.set_encoding(Encoding::UTF_8)
  $stdout.sync = true
  $stdin.each_line do |line|
    question = JSON.parse(line)
    key = Routing.normal_form(question['name'])
    nodes = question['nodes']
    puts JSON.generate(
      normal_form: key,
      partition: Routing.partition(key),
      md5: Routing.md5_home(key, nodes),
      rendezvous: Routing.rendezvous_home(key, nodes),
      homes: Routing.homes(question['name'], nodes, question['pins'] || {}, question['cursors'] || [])
    )
  end
end
