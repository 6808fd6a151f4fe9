# frozen_string_literal: true

require 'pg'

module Routing
  # Keeps the cursors. Use one per process: it polls at an interval, never per name.
  #
  # While the database is away, or where it is a standby, it keeps the last answer: `homes` is right with it, since the
  # second home is asked too.
  class Follower
    QUERY = 'SELECT partition, upto, finished FROM headrace.rehash_cursors'

    # The cursors, none older than `asked_at`. Without `asked_at`, nothing has been passed.
    Reading = Struct.new(:asked_at, :cursors)

    # `connect` returns a new PG::Connection; `failed` receives each error.
    def initialize(every:, failed: ->(error) { warn(error.message) }, &connect)
      @connect = connect
      @failed = failed
      @latest = Reading.new(nil, [])
      ask
      Thread.new do
        loop do
          sleep(every)
          ask
        end
      end
    end

    # The last answer. Read it before you choose a home, and choose by it alone.
    attr_reader :latest

    private

    def ask
      asked_at = Time.now
      @latest = Reading.new(asked_at, cursors)
    rescue PG::Error => e
      @connection&.close
      @connection = nil
      @failed.call(e)
    end

    def cursors
      connection.exec(QUERY).map do |row|
        { 'partition' => Integer(row['partition']), 'upto' => row['upto'], 'finished' => row['finished'] == 't' }
      end
    rescue PG::UndefinedTable
      [] # the migration never ran
    end

    def connection
      @connection ||= @connect.call.tap do |made|
        made.exec("SET client_encoding = 'UTF8'")
        if made.exec('SELECT pg_is_in_recovery() AS standby').first['standby'] == 't'
          made.close
          raise PG::Error, 'it is a standby, which shows the past: give the primary'
        end
      end
    end
  end
end
