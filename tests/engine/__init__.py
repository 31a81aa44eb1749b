"""SGLang itself, on a CPU: a real engine, scheduler, allocator and radix cache under the attention backend vortex."""
