#include "transport/ring_timing.hpp"

#include <string>

#include "base/clock.hpp"
#include "base/work.hpp"
#include "transport/shared_memory.hpp"

namespace strikeforge {

namespace {

constexpr size_t batch = 64;

void check(const Record& record, std::uint64_t number) {
    if (record.trade.header.sequence == static_cast<std::uint32_t>(number) &&
        record.trade.price == static_cast<double>(number)) [[likely]]
        return;
    throw RingProblem("timed ring: record " + std::to_string(number) + " came as " +
                      std::to_string(record.trade.header.sequence) + " with price " +
                      std::to_string(record.trade.price));
}

}  // namespace

std::int64_t send_stamped(RingWriter& writer, std::uint64_t count, std::int64_t interval_ns) {
    Record record = {};
    const std::int64_t begin = monotonic_ns();
    for (std::uint64_t number = 0; number < count; ++number) {
        set_header(record, 0, static_cast<std::uint32_t>(number), 0, Kind::trade, 0);
        record.trade.price = static_cast<double>(number);
        if (interval_ns > 0) {
            const std::int64_t due = begin + static_cast<std::int64_t>(number) * interval_ns;
            while ((record.trade.arrival_ns = monotonic_ns()) < due) continue;
        }
        writer.write(record);
    }
    return monotonic_ns() - begin;
}

std::int64_t receive_stamped(RingReader& reader, std::uint64_t count, std::int64_t* latency_ns,
                             std::int64_t patience_ns) {
    Record records[batch];
    const std::uint64_t lost_before = reader.lost();
    std::int64_t first = 0, heard = monotonic_ns();
    while (reader.position() < count) {
        size_t got = 0;
        if (latency_ns != nullptr) {
            got = reader.read(records[0]);
            if (got != 0) latency_ns[reader.position() - 1] = monotonic_ns() - records[0].trade.arrival_ns;
        } else {
            got = reader.read_many(records, batch);
        }
        if (got != 0) {
            if (first == 0) first = monotonic_ns();
            heard = 0;
            const std::uint64_t begin = reader.position() - got;
            for (size_t place = 0; place < got; ++place) check(records[place], begin + place);
        } else if (heard == 0) {
            heard = monotonic_ns();
        } else if (monotonic_ns() - heard > patience_ns) {
            throw RingProblem("timed ring: " + std::to_string(reader.position()) + " of " + std::to_string(count) +
                              " records came, then none for " + std::to_string(patience_ns / 1'000'000) + " ms");
        }
    }
    if (latency_ns != nullptr && reader.lost() != lost_before)
        throw RingProblem("timed ring: " + std::to_string(reader.lost() - lost_before) + " records were lost");
    return monotonic_ns() - first;
}

void read_idly(RingReader& reader, std::uint64_t count, std::int64_t busy_ns, std::int64_t* taken_ns,
               std::int64_t patience_ns) {
    Record record;
    const std::uint64_t lost_before = reader.lost(), rounds = rounds_in(busy_ns);
    std::int64_t heard = monotonic_ns();
    for (std::uint64_t events = 0; events < count;) {
        if (!reader.read(record)) {
            if (monotonic_ns() - heard > patience_ns)
                throw RingProblem("idle loop: " + std::to_string(events) + " of " + std::to_string(count) +
                                  " events came, then none for " + std::to_string(patience_ns / 1'000'000) + " ms");
            continue;
        }
        heard = monotonic_ns();
        const RecordHeader& header = record.header;
        if (header.instrument != 0 || (header.kind == Kind::level && !(header.flags & last))) continue;
        work(rounds);
        taken_ns[events++] = monotonic_ns() - record.trade.arrival_ns;
    }
    if (reader.lost() != lost_before)
        throw RingProblem("idle loop: " + std::to_string(reader.lost() - lost_before) + " records were lost");
}

}  // namespace strikeforge
