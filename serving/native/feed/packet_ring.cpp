// Lines read from rings of packets (AF_PACKET, TPACKET_V2) that the kernel fills and this process reads in place: no
// system call and no copy for a packet, past the UDP stack. Version 2 hands over each packet as it comes; version 3
// hands over blocks, a part-filled one at a tick of the kernel's timer: milliseconds later, and the two lines apart.
//
// A filter in the kernel passes the line's UDP datagrams alone; what it passed is checked again here, since nobody else
// has looked at it. Fragments are left out; checksums aren't computed (cards do, and drop).
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/mman.h>

#include <algorithm>

#include "feed/datagrams.hpp"
#include "feed/frame.hpp"
#include "feed/sockets.hpp"

namespace strikeforge {

namespace {

constexpr unsigned block_bytes = 1u << 17, slot_bytes = 2048, batch = 32;
static_assert(most_frame_bytes + 256 < slot_bytes);  // with the kernel's header and those of IP and UDP
constexpr size_t udp_header_bytes = 8;

std::uint16_t big16(const std::uint8_t* data) {
    return static_cast<std::uint16_t>(data[0] << 8 | data[1]);
}
std::uint32_t big32(const std::uint8_t* data) {
    return static_cast<std::uint32_t>(big16(data)) << 16 | big16(data + 2);
}

class PacketLine {
  public:
    PacketLine(const Line& line, int receive_buffer_bytes)
        : group_(ntohl(group_of(line).s_addr)),
          port_(line.port),
          blocks_(std::max(4u, static_cast<unsigned>(receive_buffer_bytes) / block_bytes)),
          slots_(blocks_ * (block_bytes / slot_bytes)),
          membership_(joined(line)),
          socket_(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
        if (line.interface.empty()) refuse_line(line, "a packet ring needs the interface's name");
        if (socket_.number() < 0 && (errno == EPERM || errno == EACCES))
            refuse_line(line,
                        "a packet ring needs the capability CAP_NET_RAW, which this process hasn't: start it with it "
                        "(`setcap cap_net_raw+ep` on the interpreter, AmbientCapabilities= of systemd, or root), "
                        "or use kind = \"multicast\"");
        if (socket_.number() < 0) refuse_line_errno(line, "this system has no packet sockets (AF_PACKET)");
        attach_filter(line);
        const int version = TPACKET_V2;
        if (setsockopt(socket_.number(), SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) != 0)
            refuse_line_errno(line, "this kernel has no TPACKET_V2");
        tpacket_req request{};
        request.tp_block_size = block_bytes;
        request.tp_block_nr = blocks_;
        request.tp_frame_size = slot_bytes;
        request.tp_frame_nr = slots_;
        if (setsockopt(socket_.number(), SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) != 0)
            refuse_line_errno(line, "the kernel gives no packet ring of this size");
        void* map = mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_SHARED, socket_.number(), 0);
        if (map == MAP_FAILED) refuse_line_errno(line, "the packet ring can't be mapped");
        map_ = static_cast<std::uint8_t*>(map);
        sockaddr_ll address{};
        address.sll_family = AF_PACKET;
        address.sll_protocol = htons(ETH_P_IP);
        address.sll_ifindex = static_cast<int>(interface_of(line));
        if (bind(socket_.number(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
            munmap(map_, size());
            refuse_line_errno(line, "can't listen on " + line.interface);
        }
    }
    PacketLine(const PacketLine&) = delete;
    PacketLine& operator=(const PacketLine&) = delete;
    ~PacketLine() { munmap(map_, size()); }

    int number() const { return socket_.number(); }

    size_t receive(DatagramHandler& handler, SourceCounts& counts) {
        size_t got = 0;
        for (; got < batch; ++got) {
            std::uint8_t* packet = map_ + static_cast<size_t>(at_) * slot_bytes;
            auto* header = reinterpret_cast<tpacket2_hdr*>(packet);
            if ((__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER) == 0) break;
            take(packet, *header, handler, counts);
            __atomic_store_n(&header->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
            at_ = (at_ + 1) % slots_;
        }
        return got;
    }

    std::uint64_t dropped() {
        tpacket_stats stats{};
        socklen_t size = sizeof(stats);
        if (getsockopt(socket_.number(), SOL_PACKET, PACKET_STATISTICS, &stats, &size) == 0)
            dropped_ += stats.tp_drops;  // since asked last
        return dropped_;
    }

  private:
    size_t size() const { return static_cast<size_t>(blocks_) * block_bytes; }

    // What arrives meanwhile is of other senders; the ring is mapped after the filter stands, so none of it is seen.
    void attach_filter(const Line& line) {
        sock_filter program[] = {
            BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 9),                   // protocol
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 8),  // else drop
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16),                  // destination
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, group_, 0, 6),       //
            BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 6),                   // more fragments, offset
            BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x3fff, 4, 0),      //
            BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0),                  // length of the IP header
            BPF_STMT(BPF_LD | BPF_H | BPF_IND, 2),                   // destination port
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, port_, 0, 1),        //
            BPF_STMT(BPF_RET | BPF_K, 0x40000),
            BPF_STMT(BPF_RET | BPF_K, 0),  // pass, drop
        };
        const sock_fprog filter{sizeof(program) / sizeof(program[0]), program};
        if (setsockopt(socket_.number(), SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) != 0)
            refuse_line_errno(line, "the kernel refuses the filter");
    }

    void take(const std::uint8_t* packet, const tpacket2_hdr& header, DatagramHandler& handler, SourceCounts& counts) {
        const auto* link = reinterpret_cast<const sockaddr_ll*>(packet + TPACKET_ALIGN(sizeof(tpacket2_hdr)));
        if (link->sll_pkttype == PACKET_OUTGOING) return;  // this host's own
        const std::uint8_t* ip = packet + header.tp_net;
        const size_t room = header.tp_net < slot_bytes ? slot_bytes - header.tp_net : 0;
        const size_t bytes = std::min<size_t>(header.tp_snaplen, room);
        if (header.tp_snaplen < header.tp_len) {  // cut to the slot
            ++counts.too_long;
            return;
        }
        const size_t ip_bytes = bytes > 0 ? static_cast<size_t>(ip[0] & 15) * 4 : 0;
        if (bytes < 20 || ip[0] >> 4 != 4 || ip_bytes < 20 || bytes < ip_bytes + udp_header_bytes ||
            ip[9] != IPPROTO_UDP || (big16(ip + 6) & 0x3fff) != 0 || big32(ip + 16) != group_ ||
            big16(ip + ip_bytes + 2) != port_) {
            ++counts.foreign;
            return;
        }
        const size_t udp_bytes = big16(ip + ip_bytes + 4);  // the link may have padded what follows
        if (udp_bytes < udp_header_bytes || udp_bytes > bytes - ip_bytes) {
            ++counts.foreign;
            return;
        }
        ++counts.datagrams;
        const size_t data_bytes = udp_bytes - udp_header_bytes;
        if (data_bytes > most_frame_bytes) {
            ++counts.too_long;
            return;
        }
        handler.on_datagram({ip + ip_bytes + udp_header_bytes, data_bytes,
                             static_cast<std::int64_t>(header.tp_sec) * 1'000'000'000 + header.tp_nsec});
    }

    std::uint32_t group_;
    std::uint16_t port_;
    unsigned blocks_, slots_, at_ = 0;
    Descriptor membership_, socket_;
    std::uint8_t* map_ = nullptr;
    std::uint64_t dropped_ = 0;
};

class PacketRings final : public DatagramSource {
  public:
    PacketRings(const std::vector<Line>& lines, int receive_buffer_bytes) {
        for (const Line& line : lines) {
            lines_.push_back(std::make_unique<PacketLine>(line, receive_buffer_bytes));
            polled_.push_back({lines_.back()->number(), POLLIN, 0});
        }
    }
    Received receive(DatagramHandler& handler) override {
        Received received{0, true};
        for (auto& line : lines_) {
            const size_t got = line->receive(handler, counts_);
            received.datagrams += got;
            received.all = received.all && got < batch;
        }
        return received;
    }
    void wait(std::int64_t timeout_us) override { wait_readable(polled_, timeout_us); }
    SourceCounts counts() override {
        counts_.kernel_dropped = 0;
        for (auto& line : lines_) counts_.kernel_dropped += line->dropped();
        return counts_;
    }

  private:
    std::vector<std::unique_ptr<PacketLine>> lines_;
    std::vector<pollfd> polled_;
    SourceCounts counts_;
};

}  // namespace

std::unique_ptr<DatagramSource> open_packet_rings(const std::vector<Line>& lines, int receive_buffer_bytes) {
    return std::make_unique<PacketRings>(lines, receive_buffer_bytes);
}

}  // namespace strikeforge
