// Where datagrams of multicast lines come from: sockets (udp_lines.cpp) or rings of packets that the kernel fills
// (packet_ring.cpp). Both stamp each with the time at which the kernel got it. A card that decodes UDP itself would be
// a third source; one that decodes further, another feed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace strikeforge {

struct Line {
    std::string group;  // IPv4 multicast address
    std::uint16_t port;
    std::string interface;  // its name; "": the system's choice (sockets only)
};

struct Datagram {
    const std::uint8_t* data;
    size_t bytes;
    std::int64_t stamp_ns;  // CLOCK_REALTIME, by the kernel; 0: none
};

class DatagramHandler {
  public:
    virtual ~DatagramHandler() = default;
    virtual void on_datagram(const Datagram& datagram) = 0;
};

struct SourceCounts {
    std::uint64_t datagrams = 0;
    std::uint64_t too_long = 0;        // longer than any frame of ours: dropped
    std::uint64_t foreign = 0;         // packets that aren't whole UDP datagrams of the line's group and port
    std::uint64_t kernel_dropped = 0;  // by the kernel, because nobody read in time
};

class DatagramSource {
  public:
    virtual ~DatagramSource() = default;
    struct Received {
        size_t datagrams;
        bool all;  // nothing was left on any line
    };
    // Hands out what is there, up to a batch of each line. Never waits, allocates nothing.
    virtual Received receive(DatagramHandler& handler) = 0;
    virtual void wait(std::int64_t timeout_us) = 0;  // until there may be something
    virtual SourceCounts counts() = 0;
};

// RingProblem (a HostError in Python) says what a line lacks: its interface, the right to open it.
std::unique_ptr<DatagramSource> open_udp_lines(const std::vector<Line>& lines, int receive_buffer_bytes);
std::unique_ptr<DatagramSource> open_packet_rings(const std::vector<Line>& lines, int receive_buffer_bytes);

}  // namespace strikeforge
