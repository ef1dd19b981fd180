// Which instruction sets this CPU and its operating system let us use.
//
// Levels are nested: each includes the ones before it. A kernel table of a level is the table of the level below with
// some functions replaced, so a level without its own version of a kernel runs the best one below it.
#pragma once

#include <string>

namespace strikeforge {

enum class Isa : int {
    portable = 0,  // what the compiler makes of plain C++
    avx2 = 1,      // AVX2, FMA, F16C (Haswell, 2013)
    avx512 = 2,    // AVX-512 F, BW, DQ, VL (Skylake-SP, 2017)
    vnni = 3,      // and VNNI: int8 dot products (Cascade Lake, 2019)
    bf16 = 4,      // and BF16 dot products (Cooper Lake, Zen 4, Sapphire Rapids)
    amx = 5,       // and AMX tiles of bf16 and int8, AVX512-FP16 (Sapphire Rapids, 2023)
};
inline constexpr int isa_count = 6;

const char* isa_name(Isa isa);

// std::invalid_argument names the choices.
Isa parse_isa(const std::string& name);

// The highest level that this CPU has and the operating system lets us use (AMX is asked for on the first call).
Isa supported_isa();

// `asked` ("" for the best there is), or std::invalid_argument where this CPU can't run it. Where nothing is asked, the
// environment's STRIKEFORGE_ISA is.
Isa choose_isa(const std::string& asked);

// The processor's own name for itself.
std::string cpu_name();

}  // namespace strikeforge
