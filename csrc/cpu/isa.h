// Which instruction set the CPU kernels use, chosen at run time.
#pragma once

// The widest instruction set that is compiled. A build for one machine alone, such as that under the sanitizers, leaves
// out what the machine cannot run.
#if !defined(JAIR_WIDEST_ISA)
#define JAIR_WIDEST_ISA 4
#endif

namespace jair {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

// The widest instruction set that the processor and the operating system offer; asks for tile registers.
Isa detect_isa();

// The widest compiled instruction set that both the processor and the operating system offer.
Isa best_isa();

// What kernels use now: best_isa(), lowered by JAIR_KERNELS_CPU_ISA (portable, avx2, avx512, avx512_bf16, amx) or
// set_isa.
Isa active_isa();

// Changes it for the whole process and returns what is now active: at most best_isa().
Isa set_isa(Isa isa);

}  // namespace jair
