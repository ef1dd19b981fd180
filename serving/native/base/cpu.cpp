#include "base/cpu.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>

#if defined(STRIKEFORGE_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace strikeforge {

namespace {

constexpr std::array<const char*, isa_count> names = {"portable", "avx2", "avx512", "vnni", "bf16", "amx"};

#if defined(STRIKEFORGE_X86)

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Leaf cpuid(unsigned leaf, unsigned sub = 0) {
    Leaf out;
    if (!__get_cpuid_count(leaf, sub, &out.a, &out.b, &out.c, &out.d)) return {};
    return out;
}

bool bit(unsigned word, int place) {
    return (word >> place) & 1u;
}

unsigned long long enabled_states() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

// Linux hands the tile registers out on request only.
bool ask_for_tiles() {
    constexpr long arch_req_xcomp_perm = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

Isa detect() {
    const Leaf one = cpuid(1), seven = cpuid(7), seven_one = cpuid(7, 1);
    if (!bit(one.c, 27)) return Isa::portable;  // OSXSAVE
    const unsigned long long states = enabled_states();
    const bool ymm = (states & 0x6) == 0x6, zmm = (states & 0xe6) == 0xe6, tiles = (states & 0x60000) == 0x60000;
    if (!(ymm && bit(one.c, 28) && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5))) return Isa::portable;
    if (!(zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31))) return Isa::avx2;
    if (!bit(seven.c, 11)) return Isa::avx512;
    if (!bit(seven_one.a, 5)) return Isa::vnni;
    const bool amx = bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25) && bit(seven.d, 23);  // and FP16
    return amx && tiles && ask_for_tiles() ? Isa::amx : Isa::bf16;
}

#else

Isa detect() {
    return Isa::portable;
}

#endif

}  // namespace

const char* isa_name(Isa isa) {
    return names[static_cast<size_t>(isa)];
}

Isa parse_isa(const std::string& name) {
    std::string choices;
    for (int level = 0; level < isa_count; ++level) {
        if (name == names[static_cast<size_t>(level)]) return static_cast<Isa>(level);
        choices += (level ? ", " : "") + std::string(names[static_cast<size_t>(level)]);
    }
    throw std::invalid_argument("there is no instruction set '" + name + "'; there are " + choices);
}

Isa supported_isa() {
    static const Isa found = detect();
    return found;
}

Isa choose_isa(const std::string& asked) {
    const char* told = std::getenv("STRIKEFORGE_ISA");
    const std::string name = !asked.empty() ? asked : told ? told : "";
    if (name.empty()) return supported_isa();
    const Isa isa = parse_isa(name);
    if (isa > supported_isa())
        throw std::invalid_argument("instruction set '" + name + "' was asked for, but this CPU (" + cpu_name() +
                                    ") goes up to '" + isa_name(supported_isa()) + "'");
    return isa;
}

std::string cpu_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("model name", 0) == 0) return line.substr(std::min(line.find(':') + 2, line.size()));
    }
    return "unknown CPU";
}

}  // namespace strikeforge
