// Written by coefficients.py, which says where each number comes from. Lowest power first.
// clang-format off
#pragma once

namespace strikeforge::coefficients {

constexpr double mills_centre = 5.0;
constexpr float single_mills_centre = 4.0f;
constexpr float single_mills_farthest = 12.0f;
constexpr double ln2_high = 0x1.62e42fefa3000p-1;
constexpr double ln2_low = 0x1.3de6af278ece6p-42;
constexpr double inverse_ln2 = 0x1.71547652b82fep+0;
constexpr double sqrt2 = 0x1.6a09e667f3bcdp+0;
constexpr double inverse_sqrt_2pi = 0x1.9884533d43651p-2;

constexpr double mills[22] = {
    0x1.ed96b8318f6c5p+0,
    -0x1.aaf94e206d6d8p+0,
    0x1.3dd60739e7957p+0,
    -0x1.9262efbe12de8p-1,
    0x1.a7927af8f22b3p-2,
    -0x1.62d360c62dfcap-3,
    0x1.ab031a03f8648p-5,
    -0x1.ebbc32791d648p-8,
    -0x1.062396288283ap-9,
    0x1.660d46dc838dap-10,
    -0x1.38203af95694dp-13,
    -0x1.0597cccfdc5c6p-13,
    0x1.5ec47139020eep-15,
    0x1.4edfe04c6bf91p-17,
    -0x1.d1fb7ceeffe73p-18,
    -0x1.c6b6a0f528b68p-21,
    0x1.240c21c65bf5ap-20,
    0x1.d9ee4edc5840ap-24,
    -0x1.64ad5495eb24bp-23,
    -0x1.c983ee6238755p-26,
    0x1.41522aa44edd7p-26,
    0x1.756ec096d3540p-28,
};

constexpr double atanh[8] = {
    0x1.5555555555555p-1,
    0x1.9999999999a38p-2,
    0x1.2492492476cccp-2,
    0x1.c71c720159177p-3,
    0x1.745cf9048dd95p-3,
    0x1.3b1c355a8f7a2p-3,
    0x1.0fbe95d716020p-3,
    0x1.0c039c49989c6p-3,
};

constexpr double exp[11] = {
    0x1.0000000000000p-1,
    0x1.5555555555557p-3,
    0x1.5555555555556p-5,
    0x1.11111111100dfp-7,
    0x1.6c16c16c162d6p-10,
    0x1.a01a01abe62ddp-13,
    0x1.a01a01a6d7808p-16,
    0x1.71de02375656cp-19,
    0x1.27e4db67b4303p-22,
    0x1.af4ddd84882fep-26,
    0x1.1f72fc730b4ffp-29,
};

constexpr float single_mills[10] = {
    0x1.e4aa020000000p+0f,
    -0x1.8615da0000000p+0f,
    0x1.f0d9520000000p-1f,
    -0x1.dec2aa0000000p-2f,
    0x1.3619ee0000000p-3f,
    -0x1.35a85e0000000p-6f,
    -0x1.2265340000000p-7f,
    0x1.05a6aa0000000p-8f,
    0x1.35bb9c0000000p-11f,
    -0x1.172dfc0000000p-12f,
};

constexpr float single_atanh[3] = {
    0x1.5555660000000p-1f,
    0x1.9962980000000p-2f,
    0x1.32bed20000000p-2f,
};

constexpr float single_exp2[6] = {
    0x1.62e4300000000p-1f,
    0x1.ebfbe00000000p-3f,
    0x1.c6af6c0000000p-5f,
    0x1.3b2a540000000p-7f,
    0x1.5f08900000000p-10f,
    0x1.44138a0000000p-13f,
};

}  // namespace strikeforge::coefficients
// clang-format on
