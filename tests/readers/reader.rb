# frozen_string_literal: true

# Reads repositories until its input ends, with the reference reader in Ruby; see tests/readers/__init__.py.

require 'json'
require 'open3'
require_relative '../../docs/reference/readers/routing'
require_relative '../../docs/reference/readers/following'

$stdout.sync = true
given = JSON.parse(File.read(ARGV.fetch(0), encoding: Encoding::UTF_8))
follower = Routing::Follower.new(every: given['refresh_seconds']) { PG.connect(given['dsn']) }
ended = false
Thread.new do
  $stdin.read
  ended = true
end

until ended
  name = given['names'].sample
  reading = follower.latest
  found = { name: name, asked: reading.asked_at.to_f, began: Time.now.to_f, tried: [] }
  Routing.homes(name, given['nodes'], given['pins'], reading.cursors).each do |node|
    found[:tried].push(node)
    place = File.join(given['roots'][node], Routing.normal_form(name), '.git')
    output, status = Open3.capture2e('git', "--git-dir=#{place}", 'cat-file', 'blob', 'refs/heads/main:file')
    found[:value] = status.success? ? output.strip : ''
    found[:error] = status.success? ? '' : output.strip
    head = File.join(place, 'HEAD')
    break if status.success? || File.exist?(head) || File.symlink?(head) # it exists, even if unreadable
  end
  puts JSON.generate(found.merge(ended: Time.now.to_f))
  sleep(given['pause_seconds'])
end
